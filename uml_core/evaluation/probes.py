"""Probes of the representation: what a simple classifier makes of it, fitted to the labelled train rows alone.

Shape legend: N rows, M train rows, H width of the representation, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from uml_core.data.subsets import Rows, subset_text, take_shots
from uml_core.data.target_rows import MAX_VAL_SHOTS
from uml_core.errors import InputError
from uml_core.evaluation.evaluator import Results
from uml_core.evaluation.run import EvaluatedRun, Probabilities
from uml_core.models.linear_probe import Codes, LinearProbe
from uml_core.models.shared_head import Features

NEIGHBOURS = (1, 3, 5, 10, 20, 50)  # k, chosen on validation
ROWS_AT_ONCE = 4096
TINY = 1e-12


def evaluate_linear_probe(run: EvaluatedRun) -> Results:
    """Fit logistic regression to the trained representation, C chosen on validation out of five.

    It sees the run's own shots. It searches five values of C where a trained head searched none: compare it with other
    linear probes, not with test/accuracy. Where the target's path is linear (a frozen encoder without projection) the
    representation is the encoder's own, and `probe/raw` gives the same.
    """
    train, val = (run.features("train"), run.labels("train")), (run.features("val"), run.labels("val"))
    probe, strength = LinearProbe.fit_validated(train, val, len(run.classes))
    yield "probe/linear/C", strength
    yield "probe/linear/val_accuracy", probe.score(*val)[0]
    for split in run.tested:
        yield f"probe/linear/{_name(split)}", probe.score(run.features(split), run.labels(split))[0]


def evaluate_raw_probe(run: EvaluatedRun) -> Results:
    """Fit the same logistic regression to what needs no training: the encoder's embeddings, or the mean raw token.

    A trained representation should beat it; compare it with `probe/linear`, which searches as much.
    """
    train, val = (run.raw_features("train"), run.labels("train")), (run.raw_features("val"), run.labels("val"))
    probe, _ = LinearProbe.fit_validated(train, val, len(run.classes))
    yield "probe/raw/val_accuracy", probe.score(*val)[0]
    for split in run.tested:
        yield f"probe/raw/{_name(split)}", probe.score(run.raw_features(split), run.labels(split))[0]


def evaluate_knn_probe(run: EvaluatedRun) -> Results:
    """Let the k nearest train rows by cosine vote on the trained representation, k chosen on validation.

    k can be no larger than the train rows: compare runs of the same shots only, others differ in what they search.
    """
    fitted = NearestNeighbours(run.features("train"), run.labels("train"), len(run.classes))
    val_NK = fitted.predicted(run.features("val"), NEIGHBOURS)
    accuracies = {k: float((codes_N == run.labels("val")).mean()) for k, codes_N in val_NK.items()}
    best = max(accuracies, key=lambda k: (accuracies[k], -k))
    yield "probe/knn/k", float(best)
    yield "probe/knn/val_accuracy", accuracies[best]
    for split in run.tested:
        codes_N = fitted.predicted(run.features(split), (best,))[best]
        yield f"probe/knn/{_name(split)}", float((codes_N == run.labels(split)).mean())


def evaluate_zero_shot(run: EvaluatedRun) -> Results:
    """Classify by the class means of each labelled auxiliary corpus, at unit length in the trained shared space.

    No label of the target is used here, but training has used them: it is not zero-shot accuracy of the encoders. Of a
    corpus that does not have all classes only rows of its classes are scored, so such numbers are not comparable.
    """
    for corpus in run.experiment.auxiliaries:
        rows = run.data.train[corpus]
        present = np.unique(rows.labels[rows.labels >= 0])
        if not len(present):
            continue
        means_CH = _class_means(run.features_of(rows, corpus), rows.labels, present)
        for split in run.tested:
            known = np.isin(run.labels(split), present)
            if known.any():
                codes_N = present[(run.features(split)[known] @ means_CH.T).argmax(axis=1)]
                accuracy = float((codes_N == run.labels(split)[known]).mean())
                yield f"probe/zero_shot/{corpus}/{_name(split)}", accuracy


def evaluate_untrained(run: EvaluatedRun) -> Results:
    """Measure the model as initialised, with its head or its probe: what training added to.

    A head that starts at random, or behind a random projection, is at chance; one that starts from class means is the
    zero-shot head. Compare it with test/accuracy of the same run only.
    """
    untrained = run.untrained()
    for split in run.tested:
        yield f"probe/untrained/{_name(split)}", untrained.accuracy(split)


def evaluate_few_shot_probe(run: EvaluatedRun) -> Results:
    """Fit linear probes to 1, 2, 4, ... train rows a class: stratified, nested, over seeds; mean and deviation.

    Shots are drawn from the run's own labelled train rows, validation is min(4, shots) rows a class, C is chosen on it.
    A supervised run has trained its representation on more labels than the probe sees: its numbers are not few-shot
    accuracy, and only runs that saw the same labels may be compared. The drawn rows are written beside the numbers, as
    files that data.subset reads.
    """
    if not run.has_test:
        raise InputError(
            f"evaluator few_shot_probe needs a test split of {run.target}; set data.test_fraction, or add one"
        )
    settings, labels_N = run.experiment.evaluation, run.labels("train")
    fewest = int(np.bincount(labels_N, minlength=len(run.classes)).min())
    records = []
    for shots in (each for each in settings.shots if each <= fewest):
        for seed in (run.experiment.data.split_seed + index for index in range(settings.seeds)):
            drawn = {
                "train": _drawn(run, "train", shots, seed),
                "val": _drawn(run, "val", min(MAX_VAL_SHOTS, shots), seed),
            }
            name = f"probe/few_shot/shots-{shots}-seed-{seed}.json"
            yield name, _written(run, drawn, shots=shots, split_seed=seed)
            train, val = ((run.features(split)[rows], run.labels(split)[rows]) for split, rows in drawn.items())
            probe, strength = LinearProbe.fit_validated(train, val, len(run.classes))
            accuracy = probe.score(run.features("test"), run.labels("test"))[0]
            records.append({"shots": shots, "seed": seed, "C": strength, "test_accuracy": accuracy})
            if len(drawn["train"]) == len(labels_N) and len(drawn["val"]) == len(run.labels("val")):
                break  # every seed draws all the rows there are
    if not records:
        raise InputError(
            f"evaluator few_shot_probe: evaluation.shots is {list(settings.shots)}, and a class has {fewest} train "
            "rows; give fewer shots"
        )
    frame = pd.DataFrame(records)
    for shots, group in frame.groupby("shots"):
        yield f"probe/few_shot/{shots}/test_accuracy", float(group["test_accuracy"].mean())
        if len(group) > 1:
            yield f"probe/few_shot/{shots}/test_accuracy_std", float(group["test_accuracy"].std())
    yield "probe/few_shot/accuracy.csv", str(frame.to_csv(index=False, float_format="%.4f"))


class NearestNeighbours:
    """Votes of the nearest train rows by cosine; ties go to the class whose voters are nearer."""

    def __init__(self, features_MH: Features, labels_M: Codes, num_classes: int) -> None:
        self._unit_MH, self._labels, self._num_classes = _unit(features_MH), labels_M, num_classes

    def predicted(self, features_NH: Features, neighbours: Sequence[int]) -> dict[int, Codes]:
        """The predicted codes (N,) for each k; a k above the train rows is left out (the smallest is kept)."""
        usable = [k for k in neighbours if k <= len(self._labels)] or [len(self._labels)]
        found: dict[int, list[Codes]] = {k: [] for k in usable}
        unit_NH = _unit(features_NH)
        for start in range(0, len(unit_NH), ROWS_AT_ONCE):
            cosine_BM = unit_NH[start : start + ROWS_AT_ONCE] @ self._unit_MH.T
            nearest_BK = np.argsort(-cosine_BM, axis=1, kind="stable")[:, : max(usable)]
            close_BK = np.take_along_axis(cosine_BM, nearest_BK, axis=1)
            for k in usable:
                found[k].append(self._votes(nearest_BK[:, :k], close_BK[:, :k]).argmax(axis=1))
        return {k: np.concatenate(parts) if parts else np.empty(0, np.int64) for k, parts in found.items()}

    def _votes(self, nearest_BK: Codes, close_BK: npt.NDArray[np.float32]) -> Probabilities:
        votes_BC = np.zeros((len(nearest_BK), self._num_classes))
        rows_BK = np.broadcast_to(np.arange(len(nearest_BK))[:, None], nearest_BK.shape)
        # A cosine is at most 1: its share of a vote decides ties and nothing else.
        np.add.at(votes_BC, (rows_BK, self._labels[nearest_BK]), 1 + close_BK / (2 * nearest_BK.shape[1] + 1))
        return votes_BC


def _unit(features_NH: Features) -> Features:
    unit_NH: Features = features_NH / np.maximum(np.linalg.norm(features_NH, axis=1, keepdims=True), TINY)
    return unit_NH


def _class_means(features_NH: Features, labels_N: Codes, classes: Codes) -> Features:
    return _unit(np.stack([features_NH[labels_N == code].mean(axis=0) for code in classes]))


def _name(split: str) -> str:
    """The end of a probe's metric name: test_accuracy, or shift/SPLIT/accuracy."""
    return "test_accuracy" if split == "test" else f"shift/{split}/accuracy"


def _drawn(run: EvaluatedRun, split: str, shots: int, seed: int) -> Rows:
    labels_N = run.labels(split)
    return take_shots(labels_N, np.arange(len(labels_N)), shots=shots, seed=seed)


def _written(run: EvaluatedRun, drawn: dict[str, Rows], **facts: int) -> str:
    named = {
        split: ([run.ids(split)[row] for row in rows], run.labels(split)[rows].tolist())
        for split, rows in drawn.items()
    }
    return subset_text(run.classes, named, target=run.target, **facts)
