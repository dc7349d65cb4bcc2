"""Tables of the report that only some sweeps have: subsets, sentences, trained encoders, mixtures, single classes.

What an arm is comes from its space (`uml_core.sweeps.space.Facts`), what a trial was trained with from its parameters.
Differences are paired by seed and are fractions (0.01 is one percent point).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from uml_core.evaluation.statistics import Spread, spread
from uml_core.reporting.collect import (
    ArmResults,
    Condition,
    SweepResults,
    condition_of,
    seed_of,
    shared_difference,
)
from uml_core.reporting.tables import ArmRow, Paired, arm_rows, corrected
from uml_core.tracking.records import CLASS_METRIC, RunRecord

MAX_SHOWN = 24  # classes of a condition: the largest gains and the largest losses


@dataclass(frozen=True)
class AdditionRow(Paired):
    """One more corpus added to a subset, heads at random on both sides."""

    condition: Condition
    added: str
    to: str  # an arm; the baseline is no auxiliary corpus at all


@dataclass(frozen=True)
class BackboneRow(Paired):
    """One way of training: test accuracy with the unpaired data and without."""

    condition: Condition
    trained: str  # of the target's encoder, in words
    arm: str
    against: str
    test: Spread
    baseline: Spread


def subset_rows(sweep: SweepResults) -> list[ArmRow]:
    """The arms that are subsets of the auxiliary corpora."""
    rows = [row for row in arm_rows(sweep) if row.test is not None]
    return [row for row in rows if row.facts.corpora is not None and not row.facts.sentences]


def addition_rows(sweep: SweepResults) -> list[AdditionRow]:
    """Each subset compared with the same subset and one corpus more."""
    plain = [row for row in subset_rows(sweep) if not row.facts.initialised]
    results = {(row.condition, frozenset(row.facts.corpora or ())): row.arm for row in plain}
    rows = []
    for (condition, corpora), arm in results.items():
        for added in sorted(set(sweep.auxiliaries) - corpora):
            difference = sweep.difference(results.get((condition, corpora | {added}), ""), arm, condition)
            if difference is not None:
                rows.append(AdditionRow(condition, added, arm, difference=difference))
    return corrected(rows)


def sentence_rows(sweep: SweepResults) -> list[tuple[ArmRow, float]]:
    """The arms that are amounts of sentences, with the rows per class they had (NaN where no trial logged them)."""
    rows = []
    for row in arm_rows(sweep):
        if not row.facts.sentences or row.test is None:
            continue
        corpora, trials = row.facts.corpora or (), sweep.arms[row.arm, row.condition].trials
        logged = next((trial.metrics for trial in trials if trial.status != "FAILED"), {})
        rows_trained = sum(logged.get(f"data/train_rows/{corpus}", math.nan) for corpus in corpora)
        rows.append((row, rows_trained / logged.get("data/classes", math.nan) if corpora else 0.0))
    return rows


def backbone_rows(sweep: SweepResults) -> list[BackboneRow]:
    """The gain under every way of training the encoders: the headline's own after those with less trained."""
    design = sweep.design
    trained = [arm for arm in design.arms if arm.facts.trained]
    trained.sort(key=lambda arm: (arm.facts.against == design.headline, arm.name == design.headline))
    rows = []
    for condition in sweep.conditions:
        for each in trained:
            difference = sweep.difference(each.name, each.facts.against, condition)
            if difference is not None:
                compared = (sweep.arms[name, condition] for name in (each.name, each.facts.against))
                means = (spread(list(arm.test.values())) for arm in compared)
                names = each.facts.trained, each.name, each.facts.against
                rows.append(BackboneRow(condition, *names, *means, difference=difference))
    return corrected(rows)


@dataclass(frozen=True)
class MixtureGrid:
    """Mean validation accuracy less the baseline's (W weights, R ratios) under one condition, as fractions.

    Paired by seed with the baseline's selected trial; NaN where no trial finished. `corpus` is "" where all auxiliary
    corpora are varied together; else cells are means over the other corpora's values.
    """

    condition: Condition
    corpus: str
    loss_weights: tuple[float, ...]
    batch_ratios: tuple[float, ...]
    gain: npt.NDArray[np.float64]

    @property
    def best(self) -> tuple[int, int]:
        """Row and column of the largest mean."""
        row, column = np.unravel_index(int(np.nanargmax(self.gain)), self.gain.shape)
        return int(row), int(column)


def mixture_rows(sweep: SweepResults) -> list[tuple[list[tuple[str, int]], ArmRow, ArmRow]]:
    """The selected mixtures (in words, and seeds) with headline and baseline; none where no mixture was searched."""
    rows = {(row.role, row.condition): row for row in arm_rows(sweep) if row.test is not None}
    return [
        (selected_mixtures(sweep, condition), headline, baseline)
        for condition in (sweep.conditions if mixture_grids(sweep) else [])
        if (headline := rows.get(("headline", condition))) and (baseline := rows.get(("baseline", condition)))
    ]


def mixture_of(trial: RunRecord, corpus: str) -> tuple[float, float]:
    """(loss weight, batch ratio) of an auxiliary corpus; absent settings are 1."""
    weight = trial.params.get(f"mixing.loss_weight.{corpus}", "1.0")
    ratio = trial.params.get(f"mixing.batch_ratio.{corpus}", "1.0")
    return float(weight), float(ratio)


def mixture_grids(sweep: SweepResults) -> list[MixtureGrid]:
    """The headline arm's grids; none where weight and ratio were not varied, or no baseline was measured."""
    trials = [
        trial
        for trial in sweep.trials
        if trial.arm == sweep.headline and trial.status != "FAILED" and "val/accuracy" in trial.metrics
    ]
    corpora = sweep.auxiliaries
    together = all(len({mixture_of(trial, corpus) for corpus in corpora}) <= 1 for trial in trials)
    grids = []
    for condition in sweep.conditions:
        baseline = sweep.arms.get((sweep.baseline, condition))
        val = {} if baseline is None else baseline.val
        compared = [trial for trial in trials if condition_of(trial) == condition and seed_of(trial) in val]
        for corpus in corpora[:1] if together else corpora:
            gains: dict[tuple[float, float], list[float]] = defaultdict(list)
            for trial in compared:
                gains[mixture_of(trial, corpus)].append(trial.metrics["val/accuracy"] - val[seed_of(trial)])
            weights, ratios = (tuple(sorted({mixture[axis] for mixture in gains})) for axis in (0, 1))
            if len(weights) * len(ratios) > 1:
                means = [[np.mean(gains.get((weight, ratio), [math.nan])) for ratio in ratios] for weight in weights]
                grids.append(MixtureGrid(condition, "" if together else corpus, weights, ratios, np.array(means)))
    return grids


def selected_mixtures(sweep: SweepResults, condition: Condition) -> list[tuple[str, int]]:
    """(mixture in words, number of seeds) of the headline's selected trials, the most frequent first."""
    headline = sweep.arms.get((sweep.headline, condition), ArmResults(sweep.headline, condition))
    return Counter(_in_words(sweep, trial) for trial in headline.selected.values()).most_common()


def _in_words(sweep: SweepResults, trial: RunRecord) -> str:
    mixtures = {corpus: mixture_of(trial, corpus) for corpus in sweep.auxiliaries}
    if len(set(mixtures.values())) <= 1:
        weight, ratio = next(iter(mixtures.values()), (1.0, 1.0))
        parts = [f"λ {weight:g}, ratio {ratio:g}"]
    else:
        parts = [f"{corpus}: λ {weight:g}, ratio {ratio:g}" for corpus, (weight, ratio) in mixtures.items()]
    if trial.params.get("mixing.schedule", "joint") != "joint":
        parts.append(trial.params["mixing.schedule"])
    steps = trial.params.get("mixing.warm_start.steps", "0")
    if steps != "0":
        parts.append(f"{steps} steps on {trial.params.get('mixing.warm_start.corpus')} first")
    return ", ".join(parts)


@dataclass(frozen=True)
class ClassGain(Paired):
    """One class: mean recall of both arms. It has few test rows, so one class alone says little."""

    label: str
    baseline: float
    headline: float


@dataclass(frozen=True)
class ClassGains:
    """All classes of one condition, the largest gain first."""

    condition: Condition
    classes: tuple[ClassGain, ...]

    @property
    def shown(self) -> tuple[ClassGain, ...]:
        """The ends of the list: as many classes as a page bears."""
        half = MAX_SHOWN // 2
        return self.classes if len(self.classes) <= MAX_SHOWN else (*self.classes[:half], *self.classes[-half:])

    @property
    def num_up(self) -> int:
        return sum(gain.difference.mean > 0 for gain in self.classes)

    @property
    def num_down(self) -> int:
        return sum(gain.difference.mean < 0 for gain in self.classes)

    @property
    def num_reliable(self) -> int:
        """Classes that differ after Holm's correction."""
        return sum(gain.adjusted_p < 0.05 for gain in self.classes)


def class_gains(sweep: SweepResults) -> list[ClassGains]:
    """Gains of single classes under every condition where both arms logged them, corrected over its classes."""
    found = []
    for condition in sweep.conditions:
        baseline, headline = sweep.arm(sweep.baseline, condition), sweep.arm(sweep.headline, condition)
        if baseline is None or headline is None:
            continue
        gains = []
        for label in headline.measured(CLASS_METRIC):
            before, after = (arm.by_seed(f"{CLASS_METRIC}{label}") for arm in (baseline, headline))
            difference = shared_difference(after, before)
            if difference is not None:
                means = float(np.mean([*before.values()])), float(np.mean([*after.values()]))
                gains.append(ClassGain(label, *means, difference=difference))
        if gains:
            ordered = sorted(corrected(gains), key=lambda gain: (-gain.difference.mean, gain.label))
            found.append(ClassGains(condition, tuple(ordered)))
    return found
