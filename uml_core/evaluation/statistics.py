"""Statistics over paired seeds and paired test rows: mean ± standard deviation, intervals, exact tests, Holm.

Accuracies are fractions in [0, 1]; what is compared is paired by seed and by test row, never pooled.

Shape legend: N test rows, S seeds, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr, stdtr, stdtrit  # scipy.stats takes half a second to import

Key = TypeVar("Key")
CONFIDENCE = 0.95
SIGNIFICANCE = 0.05
RESAMPLES = 4000
MAX_EXACT = 16  # seeds; with more, sign flips are drawn at random
POWER, MAX_PAIRS = 0.8, 200
WORTH = 0.01  # a gain worth having: one point


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
    def is_above(self) -> bool:
        """Whether ours is reliably above."""
        return self.mean > 0 and self.p_value < SIGNIFICANCE


@dataclass(frozen=True)
class BootstrapInterval:
    """A mean difference and its percentile bootstrap interval."""

    mean: float
    low: float
    high: float


def bootstrap_difference(
    differences: Sequence[npt.NDArray[np.float64]], *, crossed: bool = False, seed: int = 0
) -> BootstrapInterval:
    """The mean of paired differences with a 95 % percentile bootstrap interval.

    Rows are drawn anew with replacement, and so are the seeds where there are several. With few seeds (below about 10)
    the interval is too narrow: read it beside the t interval of `paired_difference`.

    `differences` are, of each seed, ours less the other's on each test row (N,). `crossed`: the rows are the same in
    every seed, in the same order, and are drawn for all seeds at once.
    """
    # Not scipy's bootstrap, which draws rows one by one and knows no seeds: hits and misses take three values, so a
    # multinomial draw of how often each comes is the same thing.
    rng = np.random.default_rng(seed)
    drawn_together = [np.stack(differences)] if crossed else [each_N[None] for each_N in differences]
    means_RS = np.concatenate([_resampled_means(each_SN, rng) for each_SN in drawn_together], axis=1)
    seeds_RS = rng.integers(len(differences), size=means_RS.shape)
    resampled_R = np.take_along_axis(means_RS, seeds_RS, axis=1).mean(axis=1)
    low, high = np.quantile(resampled_R, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    mean = float(np.mean([difference.mean() for difference in differences]))
    return BootstrapInterval(mean, float(low), float(high))


def _resampled_means(difference_SN: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Each seed's mean over N rows drawn with replacement, many times (R, S): by how often each distinct row comes."""
    rows, counts = np.unique(difference_SN, axis=1, return_counts=True)
    total = int(counts.sum())
    blocks = np.array_split(np.arange(RESAMPLES), -(-RESAMPLES * len(counts) // 2**20))  # a few MB at a time
    means = [rng.multinomial(total, counts / total, size=len(block)) @ rows.T / total for block in blocks]
    return np.concatenate(means)


def mcnemar(wins: int, losses: int) -> float:
    """The two-sided p value of McNemar's exact test: rows that one model alone gets right fall like a coin."""
    return min(1.0, 2 * float(bdtr(min(wins, losses), wins + losses, 0.5)))


def sign_flip_test(differences: npt.ArrayLike) -> float:
    """The two-sided p value of the paired permutation test over seeds.

    Under the null hypothesis the two arms of a seed could be exchanged. All 2^S exchanges are tried up to 16 seeds (the
    smallest p value possible is 2 / 2^S), beyond that 2^16 drawn at random.
    """
    # Not scipy's permutation_test: it loses ties to rounding (p .91 for eight differences whose mean is 0, where it is
    # 1), and takes 0.7 s where this takes 0.01 s (16 seeds).
    values = np.asarray(differences, dtype=np.float64)
    if len(values) <= MAX_EXACT:
        signs = 1 - 2 * ((np.arange(2 ** len(values))[:, None] >> np.arange(len(values))) & 1)
    else:
        signs = np.random.default_rng(0).choice([-1, 1], size=(2**MAX_EXACT, len(values)))
        signs[0] = 1  # the sample itself counts: p is never 0
    sums = np.abs(signs @ values)
    return float((sums >= abs(values.sum()) - 1e-12).mean())


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation over seeds. Raises ValueError for no values."""
    if not values:
        raise ValueError("no values to average")
    std = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return Spread(float(np.mean(values)), std, len(values))


def paired_difference(treated: Mapping[int, float], baseline: Mapping[int, float]) -> PairedDifference:
    """Compare two arms over the seeds both have (paired t, 95 % interval).

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
    error = std / math.sqrt(count)
    reach = error * float(stdtrit(count - 1, (1 + CONFIDENCE) / 2))
    p_value = 2 * float(stdtr(count - 1, -abs(mean) / error))
    return PairedDifference(mean, std, mean - reach, mean + reach, p_value, count)


def mean_over_seeds(by_seed: Mapping[int, float]) -> PairedDifference:
    """A mean over seeds with its 95 % t interval: the difference to 0. Raises ValueError for no seeds."""
    return paired_difference(by_seed, dict.fromkeys(by_seed, 0.0))


def detectable_difference(measured: PairedDifference, *, tests: int) -> float:
    """The least true difference that as many pairs, spread as these, show with a power of 80 % (t approximation).

    `tests` claims are made together; each is tested at a share of 5 % (Bonferroni, the first step of Holm).
    """
    return _reach(measured.std, measured.count, tests, POWER)


def pairs_to_decide(measured: PairedDifference, worth: float, *, tests: int) -> int | None:
    """Pairs after which the interval would hold no more than one of 0 and `worth`, if mean and spread stay as they are.

    None where more than 200 are needed.
    """
    distance = max(measured.mean, worth - measured.mean)  # to whichever of the two is farther
    counts = range(measured.count, MAX_PAIRS + 1)
    return next((count for count in counts if _reach(measured.std, count, tests, 0.5) < distance), None)


def _reach(std: float, count: int, tests: int, power: float) -> float:
    quantiles = stdtrit(count - 1, np.array([1 - (1 - CONFIDENCE) / (2 * tests), power]))
    return float(quantiles.sum() * std / math.sqrt(count))


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """Holm's adjusted p values: they hold for all the claims together. NaN stays NaN and counts as no test."""
    adjusted, largest = dict(p_values), 0.0
    tested = sorted((key for key, p in p_values.items() if not math.isnan(p)), key=adjusted.__getitem__)
    for rank, key in enumerate(tested):
        largest = max(largest, min(1.0, p_values[key] * (len(tested) - rank)))
        adjusted[key] = largest
    return adjusted
