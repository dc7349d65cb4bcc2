"""The few-shot protocol on a trained representation: a linear probe for every number of shots and every seed.

Shape legend: N rows, H width of the representation.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from uml_core.data.subset_files import subset_text
from uml_core.data.subsets import Rows, take_shots
from uml_core.data.target_rows import MAX_VAL_SHOTS
from uml_core.errors import InputError
from uml_core.evaluation.evaluator import Results
from uml_core.evaluation.run import EvaluatedRun
from uml_core.models.linear_probe import LinearProbe


def evaluate_few_shot_probe(run: EvaluatedRun) -> Results:
    """Fit linear probes to 1, 2, 4, ... train rows a class: stratified, nested, over seeds; mean and deviation.

    Shots are drawn from the run's own labelled train rows, validation is min(4, shots) rows a class, C is chosen on it.
    A supervised run has trained its representation on more labels than the probe sees: its numbers are not few-shot
    accuracy, and only runs that saw the same labels may be compared. The drawn rows are written beside the numbers, as
    files that data.subset takes.
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
            places = {
                "train": _drawn(run, "train", shots, seed),
                "val": _drawn(run, "val", min(MAX_VAL_SHOTS, shots), seed),
            }
            name = f"probe/few_shot/shots-{shots}-seed-{seed}.json"
            yield name, _written(run, places, shots=shots, split_seed=seed)
            train, val = ((run.features(split)[place], run.labels(split)[place]) for split, place in places.items())
            probe, strength = LinearProbe.fit_validated(train, val, len(run.classes))
            accuracy = probe.score(run.features("test"), run.labels("test"))[0]
            records.append({"shots": shots, "seed": seed, "C": strength, "test_accuracy": accuracy})
            if len(places["train"]) == len(labels_N) and len(places["val"]) == len(run.labels("val")):
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


def _drawn(run: EvaluatedRun, split: str, shots: int, seed: int) -> Rows:
    labels_N = run.labels(split)
    return take_shots(labels_N, np.arange(len(labels_N)), shots=shots, seed=seed)


def _written(run: EvaluatedRun, places: dict[str, Rows], **facts: int) -> str:
    named = {
        split: ([run.ids(split)[row] for row in place], run.labels(split)[place].tolist())
        for split, place in places.items()
    }
    return subset_text(run.classes, named, target=run.target, **facts)
