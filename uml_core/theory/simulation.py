"""Monte-Carlo verification: the estimators run on simulated observations, and their spread is held against theory.

A model is drawn (dimensions, ranks, noise ratio, sample counts). Its observations are drawn T times, θc is estimated by
least squares, weighted and unweighted, and the empirical covariances are compared with the closed forms, (S_X + S_Y)†
for the weighted one, on everything that can be estimated, that is on range(S_X + S_Y).

The test is exact for any T. Estimation errors are whitened with the closed-form covariance; if that is right they are
independent standard normals, so T times a variance is χ²_T, and the ratio of the sums of squares of (a + b) and (a − b)
is F_{T,T} for two of them. Each p value is turned into a z score: one standard error of the entry is one unit.

Shape legend: T trials, R rows, P parameters, C shared ones, E estimable directions of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from uml_core.theory.information import Floats, LinearGaussianModel, Modality, pseudo_inverse, range_of

OBSERVED = 3  # numbers a sample
DIMS = ((2, 1), (4, 2), (8, 4))  # of θc, and of θx and θy
RANKS = (("full", "full"), ("half", "full"), ("half", "half"), ("half", "same half"))  # what X and Y see of θc
NOISE_RATIOS, SAMPLE_COUNTS = (0.1, 1.0, 10.0), (8, 32)
FALSE_ALARM = 0.01  # how often a correct theory may be called wrong, over all entries of all models together


@dataclass(frozen=True)
class SimulatedModel:
    """A simulated model, X with noise 1; total variances are traces over the estimable directions.

    Attributes:
        ranks: what X and Y see of θc: "full", "half" of its directions, or the "same half" as X.
        z_scores: one for each entry of the covariance of the weighted estimator, then of the unweighted one.
        simulated: total variance of the weighted estimate over trials.
        unweighted: the same, unweighted.
        corrected: (S_X + S_Y)†, the closed form.
        paper: ((I_X + I_Y)cc)†, the form that leaves the nuisance parameters out.
    """

    ranks: tuple[str, str]
    z_scores: tuple[float, ...]
    simulated: float
    unweighted: float
    corrected: float
    paper: float

    @property
    def over_corrected(self) -> float:
        return self.simulated / self.corrected

    @property
    def over_paper(self) -> float:
        return self.simulated / self.paper

    @property
    def loss_unweighted(self) -> float:
        return self.unweighted / self.simulated


@dataclass(frozen=True)
class Agreement:
    """All z scores of all models together: the largest, and how large chance lets it be (Bonferroni, 1 %)."""

    entries: int
    largest_z: float
    limit: float

    @property
    def agrees(self) -> bool:
        return self.largest_z <= self.limit


def simulate_models(trials: int, seed: int) -> list[SimulatedModel]:
    """Dimensions × ranks × noise ratios × sample counts, every model with a seed of its own."""
    grid = itertools.product(DIMS, RANKS, NOISE_RATIOS, SAMPLE_COUNTS)
    return [simulate_model(*setting, trials=trials, seed=1000 * seed + index) for index, setting in enumerate(grid)]


def simulate_model(
    dims: tuple[int, int], ranks: tuple[str, str], noise_ratio: float, num_samples: int, *, trials: int, seed: int
) -> SimulatedModel:
    """Simulate one model `trials` times; designs are Gaussian, projected where a modality sees only half of θc."""
    rng, shared_dim = np.random.default_rng(seed), dims[0]
    half_x, half_y = np.linalg.qr(rng.standard_normal((2, shared_dim, shared_dim // 2)))[0]

    def modality(half: Floats | None, noise_std: float) -> Modality:
        shared, specific = (rng.standard_normal((num_samples, OBSERVED, width)) for width in dims)
        return Modality(shared if half is None else shared @ half @ half.T, specific, noise_std=noise_std)

    y = modality({"full": None, "half": half_y, "same half": half_x}[ranks[1]], noise_ratio)
    x = modality(None if ranks[0] == "full" else half_x, 1.0)
    model = LinearGaussianModel(x, y)
    basis_CE = range_of(model.shared_information)
    corrected_EE = basis_CE.T @ pseudo_inverse(model.shared_information) @ basis_CE
    parameters_P: Floats = rng.standard_normal((model.design.shape[1],))
    noise_TR = rng.standard_normal((trials, len(model.noise_stds))) * model.noise_stds
    observations_TR = model.design @ parameters_P + noise_TR

    def errors(estimator_CR: Floats) -> Floats:
        found: Floats = observations_TR @ (basis_CE.T @ estimator_CR).T - parameters_P[:shared_dim] @ basis_CE
        return found

    unweighted = model.estimator(weighted=False)
    weighted_TE, unweighted_TE = errors(model.estimator()), errors(unweighted)
    unweighted_EE = basis_CE.T @ model.covariance(unweighted) @ basis_CE
    return SimulatedModel(
        ranks,
        z_scores=(*whitened_z(weighted_TE, corrected_EE), *whitened_z(unweighted_TE, unweighted_EE)),
        simulated=float(np.mean(weighted_TE**2, axis=0).sum()),
        unweighted=float(np.mean(unweighted_TE**2, axis=0).sum()),
        corrected=float(np.trace(corrected_EE)),
        paper=float(np.trace(basis_CE.T @ pseudo_inverse(model.shared_block) @ basis_CE)),
    )


def whitened_z(errors_TE: Floats, covariance_EE: Floats) -> list[float]:
    """A z score for each entry (upper triangle) of the empirical covariance of errors against a closed form."""
    white_ET = np.linalg.solve(np.linalg.cholesky(covariance_EE), errors_TE.T)
    trials, scores = len(errors_TE), []
    for row, column in itertools.combinations_with_replacement(range(len(white_ET)), 2):
        a, b = white_ET[row], white_ET[column]
        if row == column:
            law, value = stats.chi2(trials), np.sum(a**2)
        else:
            law, value = stats.f(trials, trials), np.sum((a + b) ** 2) / np.sum((a - b) ** 2)
        upper, lower = law.sf(value), law.cdf(value)  # the smaller tail keeps its digits
        scores.append(float(stats.norm.isf(upper) if upper < lower else stats.norm.ppf(lower)))
    return scores


def agreement(models: Sequence[SimulatedModel]) -> Agreement:
    scores = np.abs([score for model in models for score in model.z_scores])
    return Agreement(len(scores), float(scores.max()), float(stats.norm.isf(FALSE_ALARM / (2 * len(scores)))))
