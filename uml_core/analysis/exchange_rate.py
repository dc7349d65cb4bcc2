"""Exchange rate: how many auxiliary rows is one more target row worth? (docs/method.md, Analyses)

In: accuracies over a grid of target rows per class × auxiliary rows per class × seeds. Out: a plane with its R² and
its rate, a bootstrap interval over seeds, a monotone surface with the rate at every point of the grid, and whether
these rates lie inside what the grid spans.

    plane     acc ≈ a · n_x + b · n_y + c                               one target row = a / b auxiliary rows
    surface   acc ≈ c + α u + β v + γ u v,  u = log2(1 + n_x), v = log2(1 + n_y), rising in n_x and in n_y everywhere

The plane gives one number, and few-shot accuracy is not planar: its R² says how far off that is. So the surface stands
beside it. It is smooth, unlike an isotonic regression, whose steps have no slope to read a rate from; it is linear in
log counts because few-shot curves are nearly so; and γ lets auxiliary rows be worth less the more target rows there
are. Both count rows per class.

Shape legend: N trials, S seeds, R resamples.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import lsq_linear

from uml_core.evaluation.statistics import PairedDifference, holm, paired_difference

Floats = npt.NDArray[np.float64]
NUM_RESAMPLES = 2000
CONFIDENCE = 0.95
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class ExchangeData:
    """Trials (N,): rows per class of the target and of the auxiliary corpora, test accuracy in [0, 1], seed."""

    target_rows: Floats
    auxiliary_rows: Floats
    accuracy: Floats
    seeds: npt.NDArray[np.int64]

    @property
    def is_grid(self) -> bool:
        """Whether both amounts vary, apart from one another: without that there is no plane."""
        return len(self.seeds) > 0 and bool(np.linalg.matrix_rank(self.plane_design) == 3)

    def by_seed(self, target_rows: float, auxiliary_rows: float) -> dict[int, float]:
        here = (self.target_rows == target_rows) & (self.auxiliary_rows == auxiliary_rows)
        return {int(seed): float(value) for seed, value in zip(self.seeds[here], self.accuracy[here], strict=True)}

    @property
    def plane_design(self) -> Floats:
        """The plane's regressors (N, 3): both amounts and a constant."""
        return np.stack([self.target_rows, self.auxiliary_rows, np.ones(len(self.seeds))], axis=1)


@dataclass(frozen=True)
class Plane:
    """acc ≈ a · n_x + b · n_y + c; slopes are accuracy per row a class. R² is of the means over seeds."""

    target_slope: float
    auxiliary_slope: float
    intercept: float
    r_squared: float

    @property
    def rate(self) -> float:
        """Auxiliary rows that one target row is worth, a / b; infinite where auxiliary rows do not raise accuracy."""
        return self.target_slope / self.auxiliary_slope if self.auxiliary_slope > 0 else math.inf


@dataclass(frozen=True)
class Surface:
    """The monotone surface, by its coefficients (c, α, β, γ), and its R² of the means over seeds."""

    coefficients: tuple[float, float, float, float]
    r_squared: float

    def accuracy(self, target_rows: Floats, auxiliary_rows: Floats) -> Floats:
        u, v = np.log2(1 + target_rows), np.log2(1 + auxiliary_rows)
        c, alpha, beta, gamma = self.coefficients
        fitted: Floats = c + alpha * u + beta * v + gamma * u * v
        return fitted

    def rate(self, target_rows: float, auxiliary_rows: float) -> float:
        """The local marginal rate (∂acc/∂n_x) / (∂acc/∂n_y): auxiliary rows per target row, there."""
        u, v = math.log2(1 + target_rows), math.log2(1 + auxiliary_rows)
        _, alpha, beta, gamma = self.coefficients
        per_target = (alpha + gamma * v) / (1 + target_rows)
        per_auxiliary = (beta + gamma * u) / (1 + auxiliary_rows)
        return per_target / per_auxiliary if per_auxiliary > 1e-9 else math.inf


@dataclass(frozen=True)
class LocalRate:
    """The rate at one point of the grid, and whether that many more rows still lie inside the grid."""

    target_rows: float
    auxiliary_rows: float
    accuracy: float  # mean over seeds
    rate: float
    out_of_grid: bool


@dataclass(frozen=True)
class Fall:
    """A step along the auxiliary amounts after which accuracy is reliably lower: neither fit can follow it."""

    target_rows: float
    fewer: float
    more: float
    change: float  # mean over seeds, negative


@dataclass(frozen=True)
class ExchangeRate:
    """What the grid says. `low` and `high` bound the plane's rate; infinite: no number of auxiliary rows will do."""

    plane: Plane
    surface: Surface
    low: float
    high: float
    local: tuple[LocalRate, ...]
    falls: tuple[Fall, ...]  # the largest first
    num_seeds: int
    auxiliary_span: float  # auxiliary rows per class between the ends of the grid

    @property
    def out_of_grid(self) -> bool:
        """Whether the plane's rate is more auxiliary rows than the grid spans: then it was never measured."""
        return self.plane.rate > self.auxiliary_span


def exchange_rate(data: ExchangeData, *, seed: int = 0) -> ExchangeRate:
    """Fit plane and surface, with a percentile bootstrap of the plane's rate over whole seeds.

    Seeds are resampled, not trials: trials of a seed share their few-shot subset. Few seeds make the interval too
    narrow (with 3 there are 10 different resamples). The amounts must form a grid (`ExchangeData.is_grid`).
    """
    surface, num_seeds = fit_surface(data), len(np.unique(data.seeds))
    low, high = _rate_interval(data, seed) if num_seeds > 1 else (math.nan, math.nan)
    largest, local = float(data.auxiliary_rows.max()), []
    for target_rows, auxiliary_rows, accuracy in _cell_means(data).tolist():
        rate = surface.rate(target_rows, auxiliary_rows)
        local.append(LocalRate(target_rows, auxiliary_rows, accuracy, rate, auxiliary_rows + rate > largest))
    span = largest - float(data.auxiliary_rows.min())
    return ExchangeRate(fit_plane(data), surface, low, high, tuple(local), reliable_falls(data), num_seeds, span)


def fit_plane(data: ExchangeData) -> Plane:
    (a, b, c), *_ = np.linalg.lstsq(data.plane_design, data.accuracy, rcond=None)
    cells = _cell_means(data)
    return Plane(float(a), float(b), float(c), _r_squared(cells[:, 2], a * cells[:, 0] + b * cells[:, 1] + c))


def fit_surface(data: ExchangeData) -> Surface:
    """The least-squares surface among those that never fall over the grid's rectangle.

    A bilinear function rises over a rectangle iff it rises along the four edges. Its gains over the lowest corner are
    p and q along the two axes and p + q + e at the far corner, with e ≥ −min(p, q). Those make two cones with
    non-negative coordinates: (p, q, e) where the amounts add to one another's effect, and (p + e, q + e, −e) where
    they take from it. Each is a bounded least-squares problem; the better one is the answer.
    """
    u, v = np.log2(1 + data.target_rows), np.log2(1 + data.auxiliary_rows)
    s, t = (u - u.min()) / np.ptp(u), (v - v.min()) / np.ptp(v)
    constant = np.ones(len(s))
    adding = np.stack([constant, s, t, s * t], axis=1)
    taking = np.stack([constant, s, t, s + t - s * t], axis=1)
    bounds = ([-np.inf, 0, 0, 0], np.inf)
    fits = [lsq_linear(design, data.accuracy, bounds=bounds) for design in (adding, taking)]
    if fits[0].cost <= fits[1].cost:
        corner, along_s, along_t, both = fits[0].x
    else:
        corner, p, q, less = fits[1].x
        along_s, along_t, both = p + less, q + less, -less
    gamma = both / (np.ptp(u) * np.ptp(v))
    alpha = along_s / np.ptp(u) - gamma * v.min()
    beta = along_t / np.ptp(v) - gamma * u.min()
    c = corner - alpha * u.min() - beta * v.min() - gamma * u.min() * v.min()
    surface = Surface((float(c), float(alpha), float(beta), float(gamma)), math.nan)
    cells = _cell_means(data)
    return Surface(surface.coefficients, _r_squared(cells[:, 2], surface.accuracy(cells[:, 0], cells[:, 1])))


def reliable_falls(data: ExchangeData) -> tuple[Fall, ...]:
    """The steps to the next larger auxiliary amount that lower accuracy, paired by seed, Holm's p < 0.05."""
    steps: dict[str, tuple[float, float, float, PairedDifference]] = {}
    for target in np.unique(data.target_rows):
        amounts = np.unique(data.auxiliary_rows[data.target_rows == target])
        for fewer, more in itertools.pairwise(amounts):
            before, after = data.by_seed(target, fewer), data.by_seed(target, more)
            if set(before) & set(after):
                steps[f"{target}:{fewer}"] = (target, fewer, more, paired_difference(after, before))
    adjusted = holm({name: difference.p_value for name, (*_, difference) in steps.items()})
    falls = [
        Fall(float(target), float(fewer), float(more), difference.mean)
        for name, (target, fewer, more, difference) in steps.items()
        if difference.mean < 0 and adjusted[name] < SIGNIFICANCE
    ]
    return tuple(sorted(falls, key=lambda fall: fall.change))


def _rate_interval(data: ExchangeData, seed: int) -> tuple[float, float]:
    """The ends of the percentile interval of the plane's rate over resampled seeds.

    A resample only weighs the seeds anew, so each seed's normal equations are set up once.
    """
    design_N3 = data.plane_design
    own = [data.seeds == name for name in np.unique(data.seeds)]
    gram_S33 = np.stack([design_N3[rows].T @ design_N3[rows] for rows in own])
    moment_S3 = np.stack([design_N3[rows].T @ data.accuracy[rows] for rows in own])
    times_RS = np.random.default_rng(seed).multinomial(len(own), np.full(len(own), 1 / len(own)), size=NUM_RESAMPLES)
    gram_R33 = np.einsum("rs,sij->rij", times_RS, gram_S33)
    usable_R = np.linalg.matrix_rank(gram_R33) == 3
    slopes_R3 = np.linalg.solve(gram_R33[usable_R], (times_RS @ moment_S3)[usable_R, :, None])[..., 0]
    positive_R = slopes_R3[:, 1] > 0
    rates_R = np.divide(slopes_R3[:, 0], slopes_R3[:, 1], out=np.full(len(slopes_R3), np.inf), where=positive_R)
    ends = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
    # An order statistic, not a mean of two: rates may be infinite.
    low, high = np.quantile(rates_R, ends, method="inverted_cdf")
    return float(low), float(high)


def _cell_means(data: ExchangeData) -> Floats:
    """Target rows, auxiliary rows and mean accuracy of every point of the grid, in order."""
    points, cell = np.unique(np.stack([data.target_rows, data.auxiliary_rows], axis=1), axis=0, return_inverse=True)
    cell = cell.reshape(-1)
    means = np.bincount(cell, weights=data.accuracy) / np.bincount(cell)
    cells: Floats = np.column_stack([points, means])
    return cells


def _r_squared(measured: Floats, fitted: Floats) -> float:
    total = float(((measured - measured.mean()) ** 2).sum())
    return 1 - float(((measured - fitted) ** 2).sum()) / total if total > 0 else math.nan
