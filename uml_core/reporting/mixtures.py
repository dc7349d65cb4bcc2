"""Mixtures of a sweep: which loss weight and batch ratio a trial used, and what they gain on validation.

Gains are differences to the baseline's selected trial of the same seed, so that a cell is paired by seed. Where every
corpus has weight and ratio of its own, there is a grid for each corpus: its cells are means over the others' values.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from uml_core.reporting.collect import Condition, SweepResults, condition_of
from uml_core.tracking.records import RunRecord


@dataclass(frozen=True)
class MixtureGrid:
    """Mean validation accuracy less the baseline's (W weights, R ratios) under one condition, as fractions.

    NaN where no trial finished. `corpus` is "" where all auxiliary corpora are varied together.
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


def mixture_of(trial: RunRecord, corpus: str) -> tuple[float, float]:
    """Return (loss weight, batch ratio) of an auxiliary corpus; absent settings are 1."""
    weight = trial.params.get(f"mixing.loss_weight.{corpus}", "1.0")
    ratio = trial.params.get(f"mixing.batch_ratio.{corpus}", "1.0")
    return float(weight), float(ratio)


def mixture_grids(sweep: SweepResults) -> list[MixtureGrid]:
    """Return the headline arm's grids; none where weight and ratio were not varied, or no baseline was measured."""
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
        for corpus in corpora[:1] if together else corpora:
            cells: dict[tuple[float, float], list[float]] = {}
            for trial in trials:
                seed = int(trial.params.get("seed", "0"))
                if condition_of(trial) == condition and baseline is not None and seed in baseline.val:
                    gain = trial.metrics["val/accuracy"] - baseline.val[seed]
                    cells.setdefault(mixture_of(trial, corpus), []).append(gain)
            if len(cells) > 1:
                grids.append(_grid(condition, "" if together else corpus, cells))
    return grids


def selected_mixtures(sweep: SweepResults, condition: Condition) -> list[tuple[str, int]]:
    """Return (mixture in words, number of seeds) of the headline's selected trials, the most frequent first."""
    counts = Counter(
        _in_words(sweep, trial)
        for trial in sweep.trials
        if trial.arm == sweep.headline and trial.tags.get("uml.selected") == "true" and condition_of(trial) == condition
    )
    return counts.most_common()


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


def _grid(condition: Condition, corpus: str, cells: dict[tuple[float, float], list[float]]) -> MixtureGrid:
    weights = tuple(sorted({weight for weight, _ in cells}))
    ratios = tuple(sorted({ratio for _, ratio in cells}))
    gain = np.full((len(weights), len(ratios)), np.nan)
    for (weight, ratio), found in cells.items():
        gain[weights.index(weight), ratios.index(ratio)] = np.mean(found)
    return MixtureGrid(condition, corpus, weights, ratios, gain)
