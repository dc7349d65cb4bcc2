"""Mixtures of a sweep: which loss weight and batch ratio a trial used, and validation accuracy over their grid.

Where there are several auxiliary corpora, spaces vary them together: the first one's values are read.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from uml_core.reporting.collect import Condition, SweepResults, condition_of
from uml_core.runs import RunRecord


@dataclass(frozen=True)
class MixtureGrid:
    """Mean validation accuracy (W weights, R ratios) in [0, 1] under one condition; NaN where no trial finished."""

    condition: Condition
    loss_weights: tuple[float, ...]
    batch_ratios: tuple[float, ...]
    accuracy: npt.NDArray[np.float64]

    @property
    def best(self) -> tuple[int, int]:
        """Row and column of the best mean."""
        row, column = np.unravel_index(int(np.nanargmax(self.accuracy)), self.accuracy.shape)
        return int(row), int(column)


def mixture_of(sweep: SweepResults, trial: RunRecord) -> tuple[float, float]:
    """Return (loss weight, batch ratio) of the first related auxiliary corpus; absent settings are 1."""
    corpus = next(iter(sweep.auxiliaries), "")
    weight = trial.params.get(f"mixing.loss_weight.{corpus}", "1.0")
    ratio = trial.params.get(f"mixing.batch_ratio.{corpus}", "1.0")
    return float(weight), float(ratio)


def mixture_grids(sweep: SweepResults) -> list[MixtureGrid]:
    """Return a grid per condition for the headline arm; none where the sweep varied neither weight nor ratio."""
    values: dict[Condition, dict[tuple[float, float], list[float]]] = {}
    for trial in sweep.trials:
        if trial.arm == sweep.headline and trial.status != "FAILED" and "val/accuracy" in trial.metrics:
            cells = values.setdefault(condition_of(trial), {})
            cells.setdefault(mixture_of(sweep, trial), []).append(trial.metrics["val/accuracy"])
    if len({mixture for cells in values.values() for mixture in cells}) < 2:
        return []
    return [_grid(condition, values[condition]) for condition in sweep.conditions if condition in values]


def selected_mixtures(sweep: SweepResults, condition: Condition) -> list[tuple[float, float, int]]:
    """Return (loss weight, batch ratio, number of seeds) of the headline's selected trials, the most frequent first."""
    counts = Counter(
        mixture_of(sweep, trial)
        for trial in sweep.trials
        if trial.arm == sweep.headline and trial.tags.get("uml.selected") == "true" and condition_of(trial) == condition
    )
    return [(weight, ratio, count) for (weight, ratio), count in counts.most_common()]


def _grid(condition: Condition, cells: dict[tuple[float, float], list[float]]) -> MixtureGrid:
    weights = tuple(sorted({weight for weight, _ in cells}))
    ratios = tuple(sorted({ratio for _, ratio in cells}))
    accuracy = np.full((len(weights), len(ratios)), np.nan)
    for (weight, ratio), found in cells.items():
        accuracy[weights.index(weight), ratios.index(ratio)] = np.mean(found)
    return MixtureGrid(condition, weights, ratios, accuracy)
