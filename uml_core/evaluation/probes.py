"""Probes of the representation: what a simple classifier makes of it, fitted to the labelled train rows alone.

Shape legend: N rows, M train rows, H width of the representation, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize
from sklearn.utils.extmath import weighted_mode

from uml_core.data.subsets import subset_text, take_shots
from uml_core.data.target_rows import MAX_VAL_SHOTS
from uml_core.errors import InputError
from uml_core.evaluation.run import EvaluatedRun, Results
from uml_core.models.linear_probe import Codes, LinearProbe
from uml_core.models.shared_head import Features

NEIGHBOURS = (1, 3, 5, 10, 20, 50)  # k, chosen on validation


def evaluate_linear_probe(run: EvaluatedRun) -> Results:
    """Fit logistic regression to the trained representation, C chosen on validation out of five.

    It sees the run's own shots. It searches five values of C where a trained head searched none: compare it with other
    linear probes, not with test/accuracy. Where the target's path is linear (a frozen encoder without projection) the
    representation is the encoder's own, and `probe/raw` gives the same.
    """
    yield from _fitted("linear", run, run.features)


def evaluate_raw_probe(run: EvaluatedRun) -> Results:
    """Fit the same logistic regression to what needs no training: the encoder's embeddings, or the mean raw token.

    A trained representation should beat it; compare it with `probe/linear`, which searches as much.
    """
    yield from _fitted("raw", run, run.raw_features)


def _fitted(name: str, run: EvaluatedRun, features: Callable[[str], Features]) -> Results:
    train, val = ((features(split), run.labels(split)) for split in ("train", "val"))
    probe, strength = LinearProbe.fit_validated(train, val, len(run.classes))
    yield f"probe/{name}/C", strength
    yield f"probe/{name}/val_accuracy", probe.score(*val)[0]
    for split in run.tested:
        yield f"probe/{name}/{_name(split)}", probe.score(features(split), run.labels(split))[0]


def evaluate_knn_probe(run: EvaluatedRun) -> Results:
    """Let the k nearest train rows by cosine vote on the trained representation, k chosen on validation.

    k can be no larger than the train rows: compare runs of the same shots only, others differ in what they search.
    """
    train = run.features("train"), run.labels("train")
    by_k = neighbour_votes(train, run.features("val"), NEIGHBOURS)
    accuracies = {k: float((codes_N == run.labels("val")).mean()) for k, codes_N in by_k.items()}
    best = max(accuracies, key=lambda k: (accuracies[k], -k))
    yield "probe/knn/k", float(best)
    yield "probe/knn/val_accuracy", accuracies[best]
    for split in run.tested:
        codes_N = neighbour_votes(train, run.features(split), (best,))[best]
        yield f"probe/knn/{_name(split)}", float((codes_N == run.labels(split)).mean())


def evaluate_zero_shot(run: EvaluatedRun) -> Results:
    """Classify by the class means of each labelled auxiliary corpus, at unit length in the trained shared space.

    No label of the target is used here, but training has used them: it is not zero-shot accuracy of the encoders. Of a
    corpus that does not have all classes only rows of its classes are scored, so such numbers are not comparable.
    Beside a head in closed form there is no shared space, and nothing is measured.
    """
    for corpus in run.experiment.auxiliaries if run.experiment.model.head == "paper" else ():
        rows = run.data.train[corpus]
        present = np.unique(rows.labels[rows.labels >= 0])
        if not len(present):
            continue
        features_NH = run.features_of(rows, corpus)
        means_CH = normalize(np.stack([features_NH[rows.labels == code].mean(axis=0) for code in present]))
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
    fewest = int(run.train_rows[run.train_rows > 0].min())  # of classes without any the probes know nothing
    records = []
    for shots in (each for each in settings.shots if each <= fewest):
        for seed in (run.experiment.data.split_seed + index for index in range(settings.seeds)):
            drawn = {
                split: take_shots(run.labels(split), np.arange(len(run.labels(split))), shots=count, seed=seed)
                for split, count in (("train", shots), ("val", min(MAX_VAL_SHOTS, shots)))
            }
            named = {
                split: ([run.ids(split)[row] for row in rows], run.labels(split)[rows].tolist())
                for split, rows in drawn.items()
            }
            text = subset_text(run.classes, named, target=run.target, shots=shots, split_seed=seed)
            yield f"probe/few_shot/shots-{shots}-seed-{seed}.json", text
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


def neighbour_votes(
    train: tuple[Features, Codes], features_NH: Features, neighbours: Sequence[int]
) -> dict[int, Codes]:
    """The codes (N,) that the k nearest train rows by cosine vote for, for each k; ties go to the nearer voters.

    A k above the number of train rows is left out; where all are, it is that number.
    """
    features_MH, labels_M = train
    usable = [k for k in neighbours if k <= len(labels_M)] or [len(labels_M)]
    searched = NearestNeighbors(n_neighbors=max(usable), metric="cosine", algorithm="brute").fit(features_MH)
    distance_NK, nearest_NK = searched.kneighbors(features_NH)
    # A distance is at most 2: its share of a vote decides ties and nothing else.
    return {
        k: weighted_mode(labels_M[nearest_NK[:, :k]], 1 - distance_NK[:, :k] / (2 * k + 1), axis=1)[0][:, 0].astype(int)
        for k in usable
    }


def _name(split: str) -> str:
    """The end of a probe's metric name: test_accuracy, or shift/SPLIT/accuracy."""
    return "test_accuracy" if split == "test" else f"shift/{split}/accuracy"
