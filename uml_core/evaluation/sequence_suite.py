"""Evaluators of a self-supervised run, under the names supervised runs use; all of them probes of the target.

In: a trained objective and its data. Out: metrics of the test split, of every shifted test split, and of baselines.

Shape legend: N sequences, H shared width, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from sklearn.metrics import balanced_accuracy_score, f1_score, recall_score

from uml_core.config import Experiment
from uml_core.corpora.sequence_data import SequenceData
from uml_core.evaluation.sequence_probe import LinearProbe, raw_features, sequence_features
from uml_core.models.sequence_model import SequenceModel, build_sequence_model

Metrics = Iterator[tuple[str, float]]


def evaluate_sequences(experiment: Experiment, model: SequenceModel, data: SequenceData) -> dict[str, float]:
    """Return test metrics of the probe on the trained trunk, and what the same probe makes of no training at all.

    `probe/untrained/test_accuracy` is the trunk as initialised, `probe/raw/test_accuracy` the mean of the raw tokens:
    a self-supervised run should beat both.
    """
    metrics = dict(sequence_test_metrics(model, data))
    untrained = build_sequence_model(experiment, data)
    metrics |= {f"probe/untrained/{name}": value for name, value in _accuracy(untrained, data)}
    if data.test is not None:
        probe = LinearProbe.fit(raw_features(data.labelled), data.labelled.labels, len(data.classes))
        metrics["probe/raw/test_accuracy"] = probe.score(raw_features(data.test), data.test.labels)[0]
    return metrics


def sequence_test_metrics(model: SequenceModel, data: SequenceData) -> Metrics:
    """Yield the probe's accuracy, NLL (nats), balanced accuracy, macro F1 and recalls on test, and shifted accuracy."""
    probe = LinearProbe.fit(
        sequence_features(model, data.target, data.labelled), data.labelled.labels, len(data.classes)
    )
    if data.test is not None:
        features_NH, labels_N = sequence_features(model, data.target, data.test), data.test.labels
        accuracy, nll = probe.score(features_NH, labels_N)
        predicted = probe.probabilities(features_NH).argmax(axis=1)
        yield "test/accuracy", accuracy
        yield "test/nll", nll
        yield "test/balanced_accuracy", float(balanced_accuracy_score(labels_N, predicted))
        yield "test/macro_f1", float(f1_score(labels_N, predicted, average="macro", zero_division=0.0))
        codes = np.arange(len(data.classes))
        recalls = recall_score(labels_N, predicted, labels=codes, average=None, zero_division=0.0)
        for name, recall in zip(data.classes, recalls, strict=True):
            yield f"test/class_accuracy/{name}", float(recall)
    for split, rows in data.shifted.items():
        yield f"shift/{split}/accuracy", probe.score(sequence_features(model, data.target, rows), rows.labels)[0]


def _accuracy(model: SequenceModel, data: SequenceData) -> Metrics:
    if data.test is None:
        return
    probe = LinearProbe.fit(
        sequence_features(model, data.target, data.labelled), data.labelled.labels, len(data.classes)
    )
    yield "test_accuracy", probe.score(sequence_features(model, data.target, data.test), data.test.labels)[0]
