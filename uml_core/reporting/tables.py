"""Tables of the report that every sweep has, as plain rows: numbers, not yet words.

Differences are paired by seed and are fractions (0.01 is one percent point); seconds are `_s`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from uml_core.evaluation.statistics import PairedDifference, Spread, holm, spread
from uml_core.reporting.collect import Condition, SweepResults, condition_of, seed_of, shared_difference
from uml_core.sweeps.space import Facts
from uml_core.tracking.records import RunRecord


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A row with a paired difference (None without shared seeds, or of the baseline itself)."""

    difference: PairedDifference | None
    adjusted_p: float = math.nan


@dataclass(frozen=True, kw_only=True)
class Paired(Compared):
    """A row that always has a difference."""

    difference: PairedDifference


Row = TypeVar("Row", bound=Compared)


@dataclass(frozen=True)
class ArmRow(Compared):
    """One arm under one condition, compared with the baseline."""

    arm: str
    condition: Condition
    role: str  # baseline, headline or ""
    facts: Facts
    test: Spread | None
    harmonic: Spread | None  # mean of seen and unseen classes' accuracies on test
    trials: int
    failed: int


@dataclass(frozen=True)
class ShiftRow:
    """One arm on one shifted test set."""

    arm: str
    condition: Condition
    split: str
    test: Spread | None
    shifted: Spread
    difference: PairedDifference | None


def corrected(rows: Sequence[Row]) -> list[Row]:
    """The rows with Holm's p, over all of them that hold a difference."""
    p_values = [math.nan if row.difference is None else row.difference.p_value for row in rows]
    return [replace(row, adjusted_p=p) for row, p in zip(rows, holm(dict(enumerate(p_values))).values(), strict=True)]


def arm_notes(sweep: SweepResults) -> dict[str, str]:
    """Every arm of a sweep with the sentence that its space has on it."""
    return {name: sweep.design.arm(name).says or "an arm of this sweep's own space." for name in sweep.arm_names()}


def arm_rows(sweep: SweepResults) -> list[ArmRow]:
    rows = []
    for condition in sweep.conditions:
        for name in sweep.arm_names():
            results = sweep.arms.get((name, condition))
            if results is None:
                continue
            is_baseline = name == sweep.baseline
            rows.append(
                ArmRow(
                    name,
                    condition,
                    "baseline" if is_baseline else "headline" if name == sweep.headline else "",
                    sweep.design.arm(name).facts,
                    spread_of(results.test),
                    spread_of(results.harmonic),
                    len(results.trials),
                    sum(trial.status == "FAILED" for trial in results.trials),
                    difference=None if is_baseline else sweep.difference(name, sweep.baseline, condition),
                )
            )
    return corrected(rows)


def sweep_metrics(sweep: SweepResults) -> dict[str, float]:
    """What the sweep's run carries in MLflow: every arm's mean test accuracy, the headline's paired difference.

    Accuracies and differences are fractions. Names are sweep/SHOTS/..., SHOTS being `4_shots` or `all`.
    """
    metrics: dict[str, float] = {}
    for row in arm_rows(sweep):
        where = f"sweep/{'all' if row.condition.shots is None else f'{row.condition.shots}_shots'}"
        if row.test is not None:
            metrics[f"{where}/test_accuracy/{row.arm}"] = row.test.mean
        if row.harmonic is not None:
            metrics[f"{where}/harmonic_mean/{row.arm}"] = row.harmonic.mean
        if row.role == "headline" and row.difference is not None:
            metrics[f"{where}/difference"] = row.difference.mean
            metrics[f"{where}/difference_low"] = row.difference.low
            metrics[f"{where}/difference_high"] = row.difference.high
            metrics[f"{where}/difference_holm_p"] = row.adjusted_p
    return {name: value for name, value in metrics.items() if not math.isnan(value)}


def shift_rows(sweep: SweepResults) -> list[ShiftRow]:
    """Every arm compared with the baseline on each shifted test set."""
    rows = []
    for condition in sweep.conditions:
        baseline = sweep.arms.get((sweep.baseline, condition))
        arms = [arm for name in sweep.arm_names() if (arm := sweep.arms.get((name, condition))) is not None]
        for split in sorted({split for arm in arms for split in arm.shift}):
            reference = baseline.shift.get(split, {}) if baseline is not None else {}
            for arm in arms:
                if arm.shift.get(split):
                    is_baseline = arm.arm == sweep.baseline
                    difference = None if is_baseline else shared_difference(arm.shift[split], reference)
                    shifted = spread(list(arm.shift[split].values()))
                    rows.append(ShiftRow(arm.arm, condition, split, spread_of(arm.test), shifted, difference))
    return rows


def cost_rows(sweeps: Sequence[SweepResults], training_runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """What each sweep and all plain training runs have spent; wall_s is NaN where it is not known."""
    spent: list[tuple[str, Sequence[RunRecord], float, float]] = []  # what, its runs, GPUs of each, wall time
    for sweep in sweeps:
        gpus = float(sweep.parent.params.get("tune.gpus_per_trial", "0"))
        spent.append((f"sweep {sweep.space}", sweep.trials, gpus, sweep.parent.metrics.get("perf/wall_s", math.nan)))
    if training_runs:
        wall_s = sum(max(0, run.end_time_ms - run.start_time_ms) / 1000 for run in training_runs if run.end_time_ms)
        spent.append(("plain training runs", training_runs, 0.0, wall_s or math.nan))
    return [
        {
            "what": what,
            "trials": len(runs),
            "failed": sum(run.status == "FAILED" for run in runs),
            "stopped": sum(run.tags.get("uml.stopped") == "true" for run in runs),
            "cpu_s": (train_s := sum(run.metrics.get("perf/train_s", 0.0) for run in runs)),
            "gpu_s": gpus * train_s,  # a run that trains on (a share of) a GPU holds one CPU as well
            "samples": sum(run.metrics.get("perf/samples", 0.0) for run in runs),  # of all corpora
            "wall_s": wall_s,
        }
        for what, runs, gpus, wall_s in spent
    ]


def front_trials(sweep: SweepResults) -> list[RunRecord]:
    """Trials of baseline and headline that no other of their seed beats in validation accuracy and cost at once.

    By arm, condition and seed, the cheapest first.
    """
    compared = (sweep.baseline, sweep.headline)
    marked = [trial for trial in sweep.trials if trial.tags.get("uml.pareto") == "true" and trial.arm in compared]
    return sorted(
        marked,
        key=lambda trial: (trial.arm, condition_of(trial).order, seed_of(trial), trial.metrics.get("perf/samples", 0)),
    )


def failed_trials(sweeps: Sequence[SweepResults]) -> list[tuple[tuple[str, str, str], int]]:
    """(space, arm, reason) of failed trials with how many there were of each, the most frequent first."""
    return Counter(
        (sweep.space, trial.arm, trial.tags.get("uml.error", "no reason recorded"))
        for sweep in sweeps
        for trial in sweep.trials
        if trial.status == "FAILED"
    ).most_common()


def spread_of(values: dict[int, float]) -> Spread | None:
    return spread(list(values.values())) if values else None
