"""Evaluators of a trained run: each yields (name, value) pairs under MLflow's names.

In: a trained model and its data. Out: metrics of the target's test split, of every shifted test split, and of probes.

Shape legend: N rows, D embedding width, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss, recall_score, top_k_accuracy_score
from torch import nn

from uml_core.config import Experiment
from uml_core.corpora.training_data import LabelledRows, TrainingData
from uml_core.feed import gathered
from uml_core.models import SharedHeadModel, build_model
from uml_core.supervised import evaluate_rows

Metrics = Iterator[tuple[str, float]]
PROBE_C = (0.01, 0.1, 1.0, 10.0, 100.0)  # inverse regularisation, chosen on validation


def test_metrics(experiment: Experiment, model: SharedHeadModel, data: TrainingData) -> Metrics:
    """Yield accuracy, balanced accuracy, macro F1, NLL (nats) and top-5 of the test split, and each class's recall."""
    if data.test is None:
        return
    probabilities_NC = class_probabilities(experiment, model, data, data.test)
    labels, codes = data.test.labels, np.arange(len(data.classes))
    predicted = probabilities_NC.argmax(axis=1)
    yield "test/accuracy", float((predicted == labels).mean())
    yield "test/balanced_accuracy", float(balanced_accuracy_score(labels, predicted))
    yield "test/macro_f1", float(f1_score(labels, predicted, average="macro", zero_division=0.0))
    yield "test/nll", float(log_loss(labels, probabilities_NC, labels=codes))
    if len(codes) > 5:
        yield "test/top5_accuracy", float(top_k_accuracy_score(labels, probabilities_NC, k=5, labels=codes))
    recalls = recall_score(labels, predicted, labels=codes, average=None, zero_division=0.0)
    for name, recall in zip(data.classes, recalls, strict=True):
        yield f"test/class_accuracy/{name}", float(recall)


def shift_metrics(experiment: Experiment, model: SharedHeadModel, data: TrainingData) -> Metrics:
    """Yield accuracy on every extra split of the target: test sets whose pictures look different."""
    for split, rows in data.shifted.items():
        yield f"shift/{split}/accuracy", evaluate_rows(model, data.target, rows, normalize=experiment.model.normalize)


def linear_probe(experiment: Experiment, model: SharedHeadModel, data: TrainingData) -> Metrics:
    """Yield test accuracy of logistic regression on the frozen embeddings, C chosen on validation.

    It sees the same shots as the run but neither projection nor auxiliary data, and it searches 5 values of C: compare
    it with arms of an equal search only.
    """
    train = data.train[data.target]
    if data.test is None:
        return
    best: tuple[float, LogisticRegression] | None = None
    for strength in PROBE_C:
        probe = LogisticRegression(C=strength, max_iter=1000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # weak regularisation is allowed to stop early
            probe.fit(train.gathered(), train.labels)
        accuracy = float(probe.score(data.val.gathered(), data.val.labels))
        if best is None or accuracy > best[0]:
            best = (accuracy, probe)
    assert best is not None
    yield "probe/linear/val_accuracy", best[0]
    yield "probe/linear/test_accuracy", float(best[1].score(data.test.gathered(), data.test.labels))
    for split, rows in data.shifted.items():
        yield f"probe/linear/shift/{split}/accuracy", float(best[1].score(rows.gathered(), rows.labels))


def untrained_head(experiment: Experiment, model: SharedHeadModel, data: TrainingData) -> Metrics:
    """Yield test accuracy of the model as initialised: chance where a random projection leads into the head."""
    if data.test is not None:
        untrained = build_model(experiment, data)
        yield (
            "probe/untrained/test_accuracy",
            evaluate_rows(untrained, data.target, data.test, normalize=experiment.model.normalize),
        )


EVALUATORS: tuple[Callable[[Experiment, SharedHeadModel, TrainingData], Metrics], ...] = (
    test_metrics,
    shift_metrics,
    linear_probe,
    untrained_head,
)


def evaluate(experiment: Experiment, model: SharedHeadModel, data: TrainingData) -> dict[str, float]:
    """Return what every evaluator yields."""
    return {name: value for evaluator in EVALUATORS for name, value in evaluator(experiment, model, data)}


@torch.inference_mode()
def class_probabilities(
    experiment: Experiment, model: SharedHeadModel, data: TrainingData, rows: LabelledRows
) -> npt.NDArray[np.float64]:
    """Return the target's class probabilities (N, C)."""
    embedding_ND, _ = gathered(rows, next(model.parameters()).device)
    if experiment.model.normalize:
        embedding_ND = nn.functional.normalize(embedding_ND, dim=-1)
    probabilities: npt.NDArray[np.float64] = torch.softmax(model.logits(data.target, embedding_ND).double(), 1).numpy()
    return probabilities
