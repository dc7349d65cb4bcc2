"""An experiment with every kind of sweep as `RunRecord`s: what a full report page is tested and looked at with."""

from __future__ import annotations

import itertools
import zlib
from dataclasses import replace

from tests.sweep_records import GAIN, parent_record, sweep_records, trial, values
from uml_core.tracking.records import RunRecord

SHOTS = (1, 2, 4, 8, 16)
FEW_SHOT_ARMS = ("linear_probe", "unimodal", "uml", "unimodal_init", "uml_init", "shuffled_init")
CORPORA = ("captions", "sounds")


def with_metrics(run: RunRecord, metrics: dict[str, float]) -> RunRecord:
    """The same run with further metrics."""
    return RunRecord(**{**vars(run), "metrics": {**run.metrics, **metrics}})


def few_shot_records(*, num_classes: int = 12) -> list[RunRecord]:
    """A few-shot sweep whose gain fades with shots, with single classes logged for baseline and headline."""
    parent = parent_record(
        "few_shot", uml_target="photos", uml_corpora="photos,captions", uml_question="Up to how many?"
    )
    settings = {"optim.lr": "0.001", "model.head_init": "zero_shot", "tune.gpus_per_trial": "0.25"}
    parent = replace(parent, params={**settings, "data.shots": "None"}, metrics={"perf/wall_s": 340.0})
    runs = [parent]
    for index, shots in enumerate(SHOTS):
        fade = (1.0, 0.8, 0.4, 0.0, 0.0)[index]
        arms = {arm: 0.06 * index + GAIN["unimodal"] + fade * (GAIN[arm] - GAIN["unimodal"]) for arm in FEW_SHOT_ARMS}
        for seed in range(5):
            for arm, test in values(arms, seed).items():
                run = trial(parent, arm, seed, test, shots=shots, shift={"sketch": test - 0.1})
                classes = {
                    f"test/class_accuracy/breed {code:02d}": min(1.0, max(0.0, test + wobble(code, arm)))
                    for code in range(num_classes)
                    if arm in ("unimodal", "uml_init")
                }
                runs.append(with_metrics(run, {**classes, "perf/samples": 51_200.0}))
    return runs


def mixing_records(*, per_corpus: bool = False) -> list[RunRecord]:
    """A sweep over loss weight and batch ratio, the baseline with as many trials."""
    parent = parent_record(
        "mixing_ratio", headline="uml", uml_target="photos", uml_corpora=",".join(("photos", *CORPORA))
    )
    runs = [parent]
    weights, ratios = (0.1, 0.3, 1.0), (0.5, 1.0, 2.0)
    for seed in range(3):
        runs += [trial(parent, "unimodal", seed, 0.6, shots=4, selected=index == 0) for index in range(9)]
        for weight, ratio in itertools.product(weights, ratios):
            gain = 0.05 * weight - 0.01 * ratio
            mixture = {f"mixing.loss_weight.{name}": weight for name in CORPORA}
            mixture |= {f"mixing.batch_ratio.{name}": ratio for name in CORPORA}
            if per_corpus:
                mixture["mixing.loss_weight.sounds"] = 1.1 - weight
            best = (weight, ratio) == (1.0, 0.5)
            runs.append(trial(parent, "uml", seed, 0.6 + gain, shots=4, params=mixture, selected=best))
    return runs


def modality_records() -> list[RunRecord]:
    """All subsets of two corpora: captions help, sounds do not, and cost something beside captions."""
    parent = parent_record(
        "modalities", headline="captions+sounds", uml_target="photos", uml_corpora=",".join(("photos", *CORPORA))
    )
    arms = {"unimodal": 0.6, "captions": 0.66, "captions_init": 0.68, "sounds": 0.6, "captions+sounds": 0.64}
    return sweep_records(arms, parent=parent, shots=(1, 4))


def wobble(code: int, arm: str) -> float:
    """What a class adds in an arm: some classes gain, some lose."""
    return 0.02 * (zlib.crc32(f"{code}{arm == 'uml_init'}".encode()) % 9 - 4)
