"""Tables of the report as plain rows: numbers, not yet words. What the page shows is worked out here.

Differences are paired by seed and are fractions (0.01 is one percent point); seconds are `_s`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from uml_core.evaluation.statistics import PairedDifference, Spread, holm, paired_difference, spread
from uml_core.reporting.collect import (
    DECIDING_SPACES,
    EXCHANGE_RATE,
    FINE_TUNING,
    MIXING_RATIO,
    MODALITIES,
    TEXT,
    ArmResults,
    Condition,
    SweepResults,
    condition_of,
)
from uml_core.reporting.mixtures import selected_mixtures
from uml_core.tracking.records import RunRecord

CONTROLS_NOTES = {
    "linear_probe": "the target alone without projection: a plain linear probe on its embeddings.",
    "unimodal": "the matched baseline: same model, steps and target batches with the projection kept, a random head, "
    "and auxiliary loss weight λ = 0.",
    "unimodal_init": "as unimodal (λ = 0), but the head starts from the auxiliary corpus's class means.",
    "uml": "the target and the auxiliary corpora train one shared head (λ > 0), which starts at random.",
    "uml_init": "as uml (λ > 0), and the head starts from the auxiliary corpus's class means.",
    "shuffled": "as uml, with the auxiliary labels shuffled over rows: same data, wrong meaning.",
    "shuffled_init": "as uml_init, with the auxiliary labels shuffled over rows: same data, wrong meaning.",
    "noise": "as uml, with noise of the same mean and scale in place of the auxiliary embeddings.",
    "noise_init": "as uml_init, with noise of the same mean and scale in place of the auxiliary embeddings.",
    "unrelated": "as uml, with an auxiliary corpus about something else.",
    "unrelated_init": "as uml_init, with an auxiliary corpus about something else.",
    "zero_shot": "the head as the auxiliary corpus's class means initialise it, not trained at all.",
}
MODALITIES_NOTES = {
    "unimodal": "the matched baseline: every corpus stays in the model at λ = 0, and the head starts at random.",
}
TEXT_NOTES = {"unimodal": "no sentences: λ = 0 and a random head, the projection kept."}
# mixing_ratio leaves the head as the experiment file has it, so its arms are not those of the same name above.
MIXING_RATIO_NOTES = {
    "unimodal": "auxiliary loss weight λ = 0, searched over learning rates, all else as in the experiment file.",
    "uml": "λ > 0, searched over loss weights, batch ratios and what else was named, all else as in the file.",
}
FINE_TUNING_NOTES = {
    **CONTROLS_NOTES,
    "linear_probe": "the target alone on its frozen encoder, without projection: a plain linear probe.",
    "unimodal": "the matched baseline: encoder and head are trained on the target alone (λ = 0), from a random head.",
    **{f"frozen_{arm}": f"as {arm}, with the encoder left as it is." for arm in ("unimodal", "uml", "uml_init")},
    **{f"partial_{arm}": f"as {arm}, with its last blocks alone trained." for arm in ("unimodal", "uml", "uml_init")},
    **{f"lora_{arm}": f"as {arm}, with low-rank adapters alone trained." for arm in ("unimodal", "uml", "uml_init")},
    **{f"{arm}_trained_text": f"as {arm}, with the text encoder trained as well." for arm in ("uml", "uml_init")},
}
EXCHANGE_RATE_NOTES = {"unimodal": "no auxiliary rows: λ = 0 and a random head, the projection kept."}
ARM_NOTES = {
    **dict.fromkeys(DECIDING_SPACES, CONTROLS_NOTES),
    FINE_TUNING: FINE_TUNING_NOTES,
    MODALITIES: MODALITIES_NOTES,
    TEXT: TEXT_NOTES,
    MIXING_RATIO: MIXING_RATIO_NOTES,
    EXCHANGE_RATE: EXCHANGE_RATE_NOTES,
}


@dataclass(frozen=True)
class ArmRow:
    """One arm under one condition; `difference` is to the baseline, None for the baseline or without shared seeds."""

    arm: str
    condition: Condition
    role: str  # baseline, headline or ""
    test: Spread | None
    difference: PairedDifference | None
    adjusted_p: float
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


@dataclass(frozen=True)
class MixtureRow:
    """The mixture that validation selected against the baseline, on the test set."""

    condition: Condition
    mixtures: list[tuple[str, int]]  # in words, and seeds
    headline: ArmResults
    baseline: ArmResults
    difference: PairedDifference | None

    @property
    def headline_test(self) -> Spread:
        """Test accuracy of the selected mixtures."""
        return spread(list(self.headline.test.values()))

    @property
    def baseline_test(self) -> Spread:
        """Test accuracy of the baseline."""
        return spread(list(self.baseline.test.values()))


@dataclass(frozen=True)
class CostRow:
    """What was spent; wall_s is NaN where it is not known. Samples are those of all corpora."""

    what: str
    trials: int
    failed: int
    stopped: int
    cpu_s: float
    gpu_s: float
    samples: float
    wall_s: float


@dataclass(frozen=True)
class FrontRow:
    """A trial of baseline or headline that no other of its seed beats in validation accuracy and cost."""

    arm: str
    condition: Condition
    seed: int
    val_accuracy: float
    samples: float
    selected: bool


@dataclass(frozen=True)
class FailedTrials:
    """Failed trials of one arm that gave the same reason."""

    space: str
    arm: str
    reason: str
    count: int


def arm_notes(sweep: SweepResults) -> dict[str, str]:
    """Return every arm of a sweep with a sentence on what it is."""
    notes = dict(ARM_NOTES.get(sweep.space, {}))
    if sweep.space == EXCHANGE_RATE:
        amounts = {name: name.removeprefix("auxiliary_") for name in sweep.arm_names() if name != "unimodal"}
        notes |= {name: f"at most {rows} rows per class of every auxiliary corpus." for name, rows in amounts.items()}
    if sweep.space == MODALITIES:
        notes |= {name: _subset_note(name) for name in sweep.arm_names() if name != sweep.baseline}
    if sweep.space == TEXT:
        notes |= {name: _sentences_note(name) for name in sweep.arm_names() if name != sweep.baseline}
    return {name: notes.get(name, "an arm of this sweep's own space.") for name in sweep.arm_names()}


def _subset_note(arm: str) -> str:
    corpora = " and ".join(arm.removesuffix("_init").split("+"))
    start = "starts from its class means" if arm.endswith("_init") else "starts at random"
    return f"{corpora} at λ > 0, the other auxiliary corpora at λ = 0; the head {start}."


def _sentences_note(arm: str) -> str:
    corpus, _, amount = arm.rpartition("_")
    words = {"all": "all sentences", "average": "one row per class, the mean of all its sentences"}
    return f"{words.get(amount, f'at most {amount} sentences per class')} of {corpus} alone."


def arm_rows(sweep: SweepResults) -> list[ArmRow]:
    """Compare every arm with the baseline under each condition; p values are corrected over all these rows."""
    rows = [
        _arm_row(sweep, results)
        for condition in sweep.conditions
        for name in sweep.arm_names()
        if (results := sweep.arms.get((name, condition))) is not None
    ]
    p_values = {str(index): row.difference.p_value for index, row in enumerate(rows) if row.difference is not None}
    adjusted = holm(p_values)
    return [replace(row, adjusted_p=adjusted.get(str(index), math.nan)) for index, row in enumerate(rows)]


def shift_rows(sweep: SweepResults) -> list[ShiftRow]:
    """Compare every arm with the baseline on each shifted test set."""
    rows = []
    for condition in sweep.conditions:
        baseline = sweep.arms.get((sweep.baseline, condition))
        for split in sorted(
            {split for (_, where), arm in sweep.arms.items() if where == condition for split in arm.shift}
        ):
            reference = baseline.shift.get(split, {}) if baseline is not None else {}
            for name in sweep.arm_names():
                arm = sweep.arms.get((name, condition))
                if arm is not None and arm.shift.get(split):
                    difference = None if name == sweep.baseline else shared_difference(arm.shift[split], reference)
                    shifted = spread(list(arm.shift[split].values()))
                    rows.append(ShiftRow(name, condition, split, _spread(arm.test), shifted, difference))
    return rows


def mixture_rows(sweep: SweepResults) -> list[MixtureRow]:
    """Compare the selected mixtures with the baseline, condition by condition."""
    rows = []
    for condition in sweep.conditions:
        headline, baseline = sweep.arm(sweep.headline, condition), sweep.arm(sweep.baseline, condition)
        if headline is not None and baseline is not None:
            difference = shared_difference(headline.test, baseline.test)
            rows.append(MixtureRow(condition, selected_mixtures(sweep, condition), headline, baseline, difference))
    return rows


def cost_rows(sweeps: Sequence[SweepResults], training_runs: Sequence[RunRecord]) -> list[CostRow]:
    """Return what each sweep and all plain training runs have spent."""
    rows = []
    for sweep in sweeps:
        gpus = float(sweep.parent.params.get("tune.gpus_per_trial", "0"))
        wall_s = sweep.parent.metrics.get("perf/wall_s", math.nan)
        rows.append(_cost_row(f"sweep {sweep.space}", sweep.trials, gpus=gpus, wall_s=wall_s))
    if training_runs:
        wall_s = sum(max(0, run.end_time_ms - run.start_time_ms) / 1000 for run in training_runs if run.end_time_ms)
        rows.append(_cost_row("plain training runs", training_runs, gpus=0.0, wall_s=wall_s or math.nan))
    return rows


def _cost_row(what: str, runs: Sequence[RunRecord], *, gpus: float, wall_s: float) -> CostRow:
    """Sum over runs; a run that trains on (a share of) a GPU also holds one CPU."""
    train_s = sum(run.metrics.get("perf/train_s", 0.0) for run in runs)
    return CostRow(
        what,
        trials=len(runs),
        failed=sum(run.status == "FAILED" for run in runs),
        stopped=sum(run.tags.get("uml.stopped") == "true" for run in runs),
        cpu_s=train_s,
        gpu_s=gpus * train_s,
        samples=sum(run.metrics.get("perf/samples", 0.0) for run in runs),
        wall_s=wall_s,
    )


def front_rows(sweep: SweepResults) -> list[FrontRow]:
    """Return the marked trials of baseline and headline, by arm, condition and seed, the cheapest first."""
    rows = [
        FrontRow(
            trial.arm,
            condition_of(trial),
            int(trial.params.get("seed", "0")),
            trial.metrics.get("val/accuracy", math.nan),
            trial.metrics.get("perf/samples", math.nan),
            trial.tags.get("uml.selected") == "true",
        )
        for trial in sweep.trials
        if trial.tags.get("uml.pareto") == "true" and trial.arm in (sweep.baseline, sweep.headline)
    ]
    return sorted(rows, key=lambda row: (row.arm, row.condition.shots or math.inf, row.seed, row.samples))


def failed_trials(sweeps: Sequence[SweepResults]) -> list[FailedTrials]:
    """Return failed trials, those of one arm with the same reason counted together, the most frequent first."""
    counts = Counter(
        (sweep.space, trial.arm, trial.tags.get("uml.error", "no reason recorded"))
        for sweep in sweeps
        for trial in sweep.trials
        if trial.status == "FAILED"
    )
    return [FailedTrials(*key, count) for key, count in counts.most_common()]


def shared_difference(treated: dict[int, float], baseline: dict[int, float]) -> PairedDifference | None:
    """Return the paired difference, or None where the two share no seed."""
    return paired_difference(treated, baseline) if set(treated) & set(baseline) else None


def _arm_row(sweep: SweepResults, results: ArmResults) -> ArmRow:
    baseline = sweep.arm(sweep.baseline, results.condition)
    is_baseline = results.arm == sweep.baseline
    role = "baseline" if is_baseline else "headline" if results.arm == sweep.headline else ""
    difference = None if baseline is None or is_baseline else shared_difference(results.test, baseline.test)
    test = _spread(results.test)
    return ArmRow(results.arm, results.condition, role, test, difference, math.nan, results.trials, results.failed)


def _spread(values: dict[int, float]) -> Spread | None:
    return spread(list(values.values())) if values else None
