"""Statistics over paired seeds: mean ± standard deviation, paired t interval, Holm's correction.

Accuracies are fractions in [0, 1]; what is compared is paired by seed, never pooled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (ddof 1; NaN for one value) over seeds."""

    mean: float
    std: float
    count: int


@dataclass(frozen=True)
class PairedDifference:
    """Differences paired by seed: mean, standard deviation, two-sided t interval and p value.

    With fewer than two pairs there is no interval: low, high and p_value are NaN.
    """

    mean: float
    std: float
    low: float
    high: float
    p_value: float
    count: int

    @property
    def above_zero(self) -> bool:
        """Whether the whole interval lies above 0."""
        return self.low > 0

    @property
    def below_zero(self) -> bool:
        """Whether the whole interval lies below 0."""
        return self.high < 0


def spread(values: Sequence[float]) -> Spread:
    """Return mean and standard deviation over seeds. Raises ValueError for no values."""
    if not values:
        raise ValueError("no values to average")
    std = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return Spread(float(np.mean(values)), std, len(values))


def paired_difference(
    treated: Mapping[int, float], baseline: Mapping[int, float], *, confidence: float = CONFIDENCE
) -> PairedDifference:
    """Compare two arms over the seeds both have (paired t).

    Differences that are all the same have no spread: the interval is that one value, and p is 0 (1 if it is 0).

    Raises:
        ValueError: the arms share no seed.
    """
    seeds = sorted(set(treated) & set(baseline))
    if not seeds:
        raise ValueError("the two arms share no seed")
    differences = np.array([treated[seed] - baseline[seed] for seed in seeds])
    mean, count = float(differences.mean()), len(seeds)
    if count < 2:
        return PairedDifference(mean, math.nan, math.nan, math.nan, math.nan, count)
    std = float(differences.std(ddof=1))
    if std < 1e-12:
        return PairedDifference(mean, 0.0, mean, mean, float(abs(mean) < 1e-12), count)
    half = float(stats.t.ppf((1 + confidence) / 2, count - 1)) * std / math.sqrt(count)
    p_value = float(2 * stats.t.sf(abs(mean) * math.sqrt(count) / std, count - 1))
    return PairedDifference(mean, std, mean - half, mean + half, p_value, count)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return Holm's adjusted p values: they hold for all the claims together. NaN stays NaN and counts as no test."""
    tested = sorted((p, name) for name, p in p_values.items() if not math.isnan(p))
    adjusted: dict[str, float] = dict(p_values)
    largest = 0.0
    for rank, (p, name) in enumerate(tested):
        largest = max(largest, min(1.0, p * (len(tested) - rank)))
        adjusted[name] = largest
    return adjusted
