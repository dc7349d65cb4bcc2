"""Monte-Carlo verification: the estimators run on simulated observations, and their spread is held against theory.

A case is a model (dimensions, ranks, noise ratio, sample counts). Its observations are drawn T times, θc is estimated
by weighted least squares, and the empirical covariance is compared with the closed form (S_X + S_Y)† on everything that
can be estimated, that is on range(S_X + S_Y).

The test is exact for any T. Estimation errors are whitened with the closed-form covariance; if that is right they are
independent standard normals, so T times a variance is χ²_T, and the ratio of the sums of squares of (a + b) and (a − b)
is F_{T,T} for two of them. Each p value is turned into a z score: one standard error of the entry is one unit.

Shape legend: T trials, R rows, C shared parameters, E estimable directions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from uml_core.theory.information import (
    Floats,
    LeastSquares,
    LinearGaussianModel,
    Modality,
    pseudo_inverse,
    range_contains,
    spectrum,
)

OBSERVED, CHUNK_ROWS = 3, 4_000_000  # numbers a sample; random numbers in memory at once
DIMS = ((2, 1), (4, 2), (8, 4))
RANKS = (("full", "full"), ("half", "full"), ("half", "half"), ("half", "same half"))
NOISE_RATIOS, SAMPLE_COUNTS = (0.1, 1.0, 10.0), (8, 32)
SWEEP_RATIOS = tuple(float(ratio) for ratio in np.logspace(-1, 2, 10))
FALSE_ALARM = 0.01  # how often a correct theory may be called wrong, over all entries of all cases together


@dataclass(frozen=True)
class Case:
    """One model to simulate; X has noise 1, Y noise `noise_ratio`, both the same number of samples."""

    shared_dim: int
    specific_dim: int
    rank_x: str  # "full": it sees all of θc; "half": half of its directions; "same half": those that X sees
    rank_y: str
    noise_ratio: float
    num_samples: int
    seed: int


@dataclass(frozen=True)
class CaseResult:
    """What a simulated case shows; total variances are traces over the estimable directions.

    Attributes:
        z_scores: one for each entry of the covariance of the weighted estimator, then of the unweighted one.
        empirical: total variance of the weighted estimate over trials.
        predicted: (S_X + S_Y)†, the corrected form.
        paper: ((I_X + I_Y)cc)†, the form that leaves the nuisance parameters out.
        x_alone: S_X†; infinite where X alone cannot estimate all that X and Y can.
        unweighted: total variance of the unweighted estimate over trials.
        unweighted_predicted: its closed form.
        estimable: E, of `case.shared_dim` directions.
    """

    case: Case
    trials: int
    estimable: int
    z_scores: tuple[float, ...]
    empirical: float
    predicted: float
    paper: float
    x_alone: float
    unweighted: float
    unweighted_predicted: float


@dataclass(frozen=True)
class NoiseSweepPoint:
    """One X (σx = 0.1) and one Y of one number: variance of three estimates at one σy, closed form and simulated."""

    sigma_x: float
    sigma_y: float
    trials: int
    x_alone: tuple[float, float]
    unweighted: tuple[float, float]
    weighted: tuple[float, float]


@dataclass(frozen=True)
class Agreement:
    """All z scores of all cases together: the largest, and how large it may be before the theory is called wrong."""

    entries: int
    largest_z: float
    limit: float
    within_one: float
    within_two: float

    @property
    def agrees(self) -> bool:
        """Whether no entry is further off than chance allows over all entries (Bonferroni, 1 % false alarms)."""
        return self.largest_z <= self.limit


def case_grid(seed: int = 0) -> list[Case]:
    """The cases: dimensions × ranks × noise ratios × sample counts."""
    grid = itertools.product(DIMS, RANKS, NOISE_RATIOS, SAMPLE_COUNTS)
    return [
        Case(shared, specific, rank_x, rank_y, ratio, samples, seed=1000 * seed + index)
        for index, ((shared, specific), (rank_x, rank_y), ratio, samples) in enumerate(grid)
    ]


def build_case(case: Case, rng: np.random.Generator) -> LinearGaussianModel:
    """The case's model; designs are Gaussian, projected where a modality sees only half of θc."""
    half_x, half_y = np.linalg.qr(rng.standard_normal((2, case.shared_dim, case.shared_dim // 2)))[0]
    halves = {"half": half_y, "same half": half_x}

    def modality(rank: str, half: Floats, noise_std: float) -> Modality:
        shape = (case.num_samples, OBSERVED)
        shared = rng.standard_normal((*shape, case.shared_dim))
        if rank != "full":
            shared = shared @ half @ half.T
        return Modality(shared, rng.standard_normal((*shape, case.specific_dim)), noise_std)

    y = modality(case.rank_y, halves.get(case.rank_y, half_y), case.noise_ratio)  # Y first: the draws' order
    return LinearGaussianModel(modality(case.rank_x, half_x, 1.0), y)


def run_case(case: Case, trials: int) -> CaseResult:
    """Simulate one case `trials` times and compare what comes out with the closed forms."""
    rng = np.random.default_rng(case.seed)
    model = build_case(case, rng)
    total = model.shared_information
    basis = spectrum(total).range_basis
    weighted, unweighted = model.least_squares(), model.least_squares("unweighted")
    parameters: Floats = rng.standard_normal((model.design.shape[1],))
    predicted = basis.T @ pseudo_inverse(total) @ basis
    exact = basis.T @ unweighted.covariance[: case.shared_dim, : case.shared_dim] @ basis
    errors = _errors(model, (weighted, unweighted), parameters, basis, rng=rng, trials=trials)
    of_x = model.modalities[0].shared_information
    x_alone = float(np.trace(basis.T @ pseudo_inverse(of_x) @ basis)) if range_contains(of_x, total) else math.inf
    return CaseResult(
        case=case,
        trials=trials,
        estimable=basis.shape[1],
        z_scores=(*whitened_z(errors[0], predicted), *whitened_z(errors[1], exact)),
        empirical=float(np.mean(errors[0] ** 2, axis=0).sum()),
        predicted=float(np.trace(predicted)),
        paper=float(np.trace(basis.T @ pseudo_inverse(model.shared_block) @ basis)),
        x_alone=x_alone,
        unweighted=float(np.mean(errors[1] ** 2, axis=0).sum()),
        unweighted_predicted=float(np.trace(exact)),
    )


def noise_sweep_point(sigma_y: float, trials: int, seed: int, sigma_x: float = 0.1) -> NoiseSweepPoint:
    """Estimate one number from one X and one Y: X alone, unweighted (x + y) / 2, and weighted by 1/σ²."""
    one = np.ones((1, 1))
    x, y = Modality.from_designs(one, noise_std=sigma_x), Modality.from_designs(one, noise_std=sigma_y)
    both, alone = LinearGaussianModel(x, y), LinearGaussianModel(x)
    rng = np.random.default_rng(seed)
    theta: Floats = rng.standard_normal((1,))

    def variances(model: LinearGaussianModel, estimator: LeastSquares) -> tuple[float, float]:
        (errors,) = _errors(model, (estimator,), theta, one, rng=rng, trials=trials)
        return float(estimator.covariance[0, 0]), float(np.mean(errors**2))

    return NoiseSweepPoint(
        sigma_x,
        sigma_y,
        trials,
        x_alone=variances(alone, alone.least_squares()),
        unweighted=variances(both, both.least_squares("unweighted")),
        weighted=variances(both, both.least_squares()),
    )


def whitened_z(errors_TE: Floats, covariance_EE: Floats) -> list[float]:
    """A z score for each entry (upper triangle) of the empirical covariance of errors against a closed form."""
    white_TE = np.linalg.solve(np.linalg.cholesky(covariance_EE), errors_TE.T).T
    trials = len(white_TE)
    scores = []
    for row, column in itertools.combinations_with_replacement(range(white_TE.shape[1]), 2):
        if row == column:
            scores.append(_z(stats.chi2(trials), float(np.sum(white_TE[:, row] ** 2))))
        else:
            plus, minus = white_TE[:, row] + white_TE[:, column], white_TE[:, row] - white_TE[:, column]
            scores.append(_z(stats.f(trials, trials), float(np.sum(plus**2) / np.sum(minus**2))))
    return scores


def agreement(results: Sequence[CaseResult]) -> Agreement:
    scores = np.abs([score for result in results for score in result.z_scores])
    return Agreement(
        entries=len(scores),
        largest_z=float(scores.max()),
        limit=float(stats.norm.isf(FALSE_ALARM / (2 * len(scores)))),
        within_one=float(np.mean(scores <= 1)),
        within_two=float(np.mean(scores <= 2)),
    )


def _errors(
    model: LinearGaussianModel,
    estimators: tuple[LeastSquares, ...],
    parameters_P: Floats,
    basis_CE: Floats,
    *,
    rng: np.random.Generator,
    trials: int,
) -> list[Floats]:
    """Each estimator's errors (T, E) in the estimable directions; both see the same observations."""
    shared_dim = model.shared_dim
    truth = parameters_P[:shared_dim] @ basis_CE
    found: list[list[Floats]] = [[] for _ in estimators]
    chunk = max(1, CHUNK_ROWS // len(model.noise_stds))
    for start in range(0, trials, chunk):
        observations = model.observe(parameters_P, rng, num_trials=min(chunk, trials - start))
        for errors, estimator in zip(found, estimators, strict=True):
            errors.append((observations @ estimator.matrix.T)[:, :shared_dim] @ basis_CE - truth)
    return [np.concatenate(errors) for errors in found]


def _z(law: stats.rv_continuous, value: float) -> float:
    """The normal score of a value under its law, from whichever tail is the smaller."""
    upper, lower = float(law.sf(value)), float(law.cdf(value))
    return float(stats.norm.isf(upper)) if upper < lower else float(stats.norm.ppf(lower))
