"""Exchange rate: how many auxiliary rows is one more target row worth? (docs/method.md, Analyses)

In: a table of trials over a grid of target rows per class × auxiliary rows per class × seeds, with columns target_rows,
auxiliary_rows, seed, and accuracy in [0, 1]. Out: a plane with its R² and its rate, a bootstrap interval over seeds, a
monotone surface with the rate at every point of the grid, and whether these rates lie inside what the grid spans.

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
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import nnls

from uml_core.evaluation.statistics import holm, paired_difference

AMOUNTS = ["target_rows", "auxiliary_rows"]
Floats = npt.NDArray[np.float64]
NUM_RESAMPLES = 2000
CONFIDENCE = 0.95
SIGNIFICANCE = 0.05


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

    def rate(self, target_rows: Floats, auxiliary_rows: Floats) -> Floats:
        """The local marginal rate (∂acc/∂n_x) / (∂acc/∂n_y): auxiliary rows per target row, there."""
        u, v = np.log2(1 + target_rows), np.log2(1 + auxiliary_rows)
        _, alpha, beta, gamma = self.coefficients
        per_target = (alpha + gamma * v) / (1 + target_rows)
        per_auxiliary = (beta + gamma * u) / (1 + auxiliary_rows)
        infinite: Floats = np.full(np.shape(u), np.inf)
        return np.divide(per_target, per_auxiliary, out=infinite, where=per_auxiliary > 1e-9)


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
    local: pd.DataFrame  # of every point of the grid: amounts, mean accuracy, rate, and whether that is out_of_grid
    falls: tuple[Fall, ...]  # the largest first
    num_seeds: int
    auxiliary_span: float  # auxiliary rows per class between the ends of the grid

    @property
    def out_of_grid(self) -> bool:
        """Whether the plane's rate is more auxiliary rows than the grid spans: then it was never measured."""
        return self.plane.rate > self.auxiliary_span


def is_grid(trials: pd.DataFrame) -> bool:
    """Whether both amounts vary, apart from one another: without that there is no plane."""
    return len(trials) > 0 and bool(np.linalg.matrix_rank(_plane_design(trials)) == 3)


def exchange_rate(trials: pd.DataFrame) -> ExchangeRate:
    """Fit plane and surface, with a percentile bootstrap of the plane's rate over whole seeds.

    Seeds are resampled, not trials: trials of a seed share their few-shot subset. Few seeds make the interval too
    narrow (with 3 there are 10 different resamples). The amounts must form a grid (`is_grid`).
    """
    surface, num_seeds = fit_surface(trials), trials["seed"].nunique()
    low, high = _rate_interval(trials) if num_seeds > 1 else (math.nan, math.nan)
    local = _cell_means(trials)
    local["rate"] = surface.rate(local["target_rows"].to_numpy(), local["auxiliary_rows"].to_numpy())
    local["out_of_grid"] = local["auxiliary_rows"] + local["rate"] > local["auxiliary_rows"].max()
    span = float(np.ptp(trials["auxiliary_rows"]))
    return ExchangeRate(fit_plane(trials), surface, low, high, local, reliable_falls(trials), num_seeds, span)


def fit_plane(trials: pd.DataFrame) -> Plane:
    coefficients_3, *_ = np.linalg.lstsq(_plane_design(trials), trials["accuracy"], rcond=None)
    cells = _cell_means(trials)
    a, b, c = coefficients_3.tolist()
    return Plane(a, b, c, _r_squared(cells["accuracy"], _plane_design(cells) @ coefficients_3))


def _plane_design(trials: pd.DataFrame) -> Floats:
    """The plane's regressors (N, 3): both amounts and a constant."""
    return np.column_stack([trials[AMOUNTS], np.ones(len(trials))])


def fit_surface(trials: pd.DataFrame) -> Surface:
    """The least-squares surface among those that never fall over the grid's rectangle.

    A bilinear function rises over a rectangle iff it rises along the four edges: a cone of coefficients, on which the
    free fit is projected. By Moreau's decomposition that takes non-negative least squares in its polar cone.
    """
    u, v = np.log2(1 + trials[AMOUNTS].to_numpy()).T
    orthogonal_N4, triangle_44 = np.linalg.qr(np.stack([np.ones(len(u)), u, v, u * v], axis=1))
    along_u, along_v = ([[0, 1, 0, end] for end in (v.min(), v.max())], [[0, 0, 1, end] for end in (u.min(), u.max())])
    inverse_44 = np.linalg.pinv(triangle_44)
    edges_44 = np.array([*along_u, *along_v]) @ inverse_44
    free_4 = orthogonal_N4.T @ trials["accuracy"].to_numpy()
    raised_4 = free_4 + edges_44.T @ nnls(edges_44.T, -free_4)[0]
    c, alpha, beta, gamma = (inverse_44 @ raised_4).tolist()
    surface = Surface((c, alpha, beta, gamma), math.nan)
    cells = _cell_means(trials)
    fitted = surface.accuracy(cells["target_rows"].to_numpy(), cells["auxiliary_rows"].to_numpy())
    return replace(surface, r_squared=_r_squared(cells["accuracy"], fitted))


def reliable_falls(trials: pd.DataFrame) -> tuple[Fall, ...]:
    """The steps to the next larger auxiliary amount that lower accuracy, paired by seed, Holm's p < 0.05."""
    steps = {}
    for target, of_target in trials.groupby("target_rows"):
        by_seed = of_target.pivot(index="seed", columns="auxiliary_rows", values="accuracy")
        for fewer, more in itertools.pairwise(by_seed):
            both = by_seed[[fewer, more]].dropna()
            if len(both):
                steps[target, fewer, more] = paired_difference(both[more].to_dict(), both[fewer].to_dict())
    adjusted = holm({step: difference.p_value for step, difference in steps.items()})
    falls = [
        Fall(*step, difference.mean)
        for step, difference in steps.items()
        if difference.mean < 0 and adjusted[step] < SIGNIFICANCE
    ]
    return tuple(sorted(falls, key=lambda fall: fall.change))


def _rate_interval(trials: pd.DataFrame) -> tuple[float, float]:
    """The ends of the percentile interval of the plane's rate over resampled seeds.

    A resample only weighs the seeds anew, so each seed's normal equations are set up once.
    """
    designs = [(_plane_design(own), own["accuracy"].to_numpy()) for _, own in trials.groupby("seed")]
    gram_S33 = np.stack([design_N3.T @ design_N3 for design_N3, _ in designs])
    moment_S3 = np.stack([design_N3.T @ accuracy_N for design_N3, accuracy_N in designs])
    num_seeds = len(designs)
    times_RS = np.random.default_rng(0).multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), NUM_RESAMPLES)
    gram_R33 = np.einsum("rs,sij->rij", times_RS, gram_S33)
    usable_R = np.linalg.matrix_rank(gram_R33) == 3
    slopes_R3 = np.linalg.solve(gram_R33[usable_R], (times_RS @ moment_S3)[usable_R, :, None])[..., 0]
    positive_R = slopes_R3[:, 1] > 0
    rates_R = np.divide(slopes_R3[:, 0], slopes_R3[:, 1], out=np.full(len(slopes_R3), np.inf), where=positive_R)
    ends = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
    # An order statistic, not a mean of two: rates may be infinite.
    low, high = np.quantile(rates_R, ends, method="inverted_cdf")
    return float(low), float(high)


def _cell_means(trials: pd.DataFrame) -> pd.DataFrame:
    """The mean accuracy over seeds of every point of the grid, in order."""
    return trials.groupby(AMOUNTS, as_index=False)["accuracy"].mean()


def _r_squared(measured: pd.Series, fitted: Floats) -> float:
    total = float(((measured - measured.mean()) ** 2).sum())
    return 1 - float(((measured - fitted) ** 2).sum()) / total if total > 0 else math.nan
