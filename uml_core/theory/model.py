"""The linear-Gaussian model of K modalities that share parameters, and its least-squares estimators, in float64.

    modality k, sample i:   y_ki = A_ki θc + B_ki θk + ε_ki,   ε_ki ~ N(0, σ_k² I)

θc (shared) and θk (specific to modality k) are fixed and unknown, designs A and B are known (arXiv 2510.08492,
section 3, there with K = 2 and A_c, A_x, B_c, B_y). Samples of different modalities are independent and unpaired.

Shape legend: N samples, M observed numbers a sample, C shared parameters, S specific parameters, R all rows of all
samples (N·M summed over modalities), P all parameters (C + all S), T Monte-Carlo trials.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from uml_core.theory.information import fisher_information, noise_per_sample, schur_information, total_information
from uml_core.theory.subspaces import TOLERANCE, Floats

Weighting = Literal["weighted", "unweighted"]


@dataclass(frozen=True)
class Modality:
    """One modality's designs and noise.

    Attributes:
        shared_designs: what each sample sees of θc (N, M, C).
        specific_designs: what it sees of the modality's own parameters (N, M, S); S may be 0.
        noise_std: σ, one number or one a sample (N,).
    """

    shared_designs: Floats
    specific_designs: Floats
    noise_std: float | Floats = 1.0

    def __post_init__(self) -> None:
        if self.shared_designs.ndim != 3 or self.specific_designs.shape[:2] != self.shared_designs.shape[:2]:
            raise ValueError(
                f"designs have shapes {self.shared_designs.shape} (shared) and {self.specific_designs.shape} "
                "(specific); expected (N, M, C) and (N, M, S)"
            )
        noise_per_sample(self.noise_std, len(self.shared_designs))

    @classmethod
    def of(cls, shared: npt.ArrayLike, specific: npt.ArrayLike | None = None, *, noise_std: float = 1.0) -> Modality:
        """Build a modality from arrays: stacks (N, M, C) and (N, M, S), or one design each; None for no nuisance."""
        shared_designs = _stacked(shared)
        if specific is None:
            return cls(shared_designs, np.zeros((*shared_designs.shape[:2], 0)), noise_std)
        return cls(shared_designs, _stacked(specific), noise_std)

    @property
    def shared_dim(self) -> int:
        """C, the number of shared parameters."""
        return int(self.shared_designs.shape[2])

    @property
    def specific_dim(self) -> int:
        """S, the number of parameters only this modality has."""
        return int(self.specific_designs.shape[2])

    @property
    def noise_stds(self) -> Floats:
        """σ of every observed number (N·M,)."""
        return np.repeat(noise_per_sample(self.noise_std, len(self.shared_designs)), self.shared_designs.shape[1])

    @cached_property
    def information(self) -> Floats:
        """Fisher information (C + S, C + S) about (θc, θk)."""
        return fisher_information((self.shared_designs, self.specific_designs), self.noise_std)

    @property
    def shared_block(self) -> Floats:
        """I_cc (C, C), the information about θc if the specific parameters were known."""
        return self.information[: self.shared_dim, : self.shared_dim]

    @property
    def shared_information(self) -> Floats:
        """S (C, C), the Schur complement: the information about θc, the specific parameters being unknown."""
        return schur_information(self.information, self.shared_dim)


@dataclass(frozen=True)
class LinearGaussianModel:
    """K modalities over the same shared parameters."""

    modalities: tuple[Modality, ...]

    def __post_init__(self) -> None:
        widths = {modality.shared_dim for modality in self.modalities}
        if len(widths) != 1:
            raise ValueError(f"modalities have shared widths {sorted(widths)}; expected one C for all of at least one")

    @property
    def shared_dim(self) -> int:
        """C, the number of shared parameters."""
        return self.modalities[0].shared_dim

    @property
    def shared_information(self) -> Floats:
        """Σ_k S_k (C, C): informations of independent modalities add up, as Schur complements."""
        return total_information(*(modality.shared_information for modality in self.modalities))

    @property
    def shared_block(self) -> Floats:
        """Σ_k (I_k)_cc (C, C), the matrix that the paper's Theorem 1 compares."""
        return total_information(*(modality.shared_block for modality in self.modalities))

    @cached_property
    def design(self) -> Floats:
        """All rows against all parameters (R, P): columns θc, then θ_1 … θ_K; zeros where a modality lacks θ_k."""
        blocks = []
        width = sum(modality.specific_dim for modality in self.modalities)
        start = 0
        for modality in self.modalities:
            rows = modality.shared_designs.reshape(-1, modality.shared_dim)
            specific = np.zeros((len(rows), width))
            specific[:, start : start + modality.specific_dim] = modality.specific_designs.reshape(len(rows), -1)
            blocks.append(np.hstack([rows, specific]))
            start += modality.specific_dim
        return np.vstack(blocks)

    @cached_property
    def noise_stds(self) -> Floats:
        """σ of every row (R,)."""
        return np.concatenate([modality.noise_stds for modality in self.modalities])

    def observe(self, parameters_P: Floats, rng: np.random.Generator, *, num_trials: int) -> Floats:
        """Draw all observations anew, num_trials times (T, R)."""
        noise_TR = rng.standard_normal((num_trials, len(self.noise_stds))) * self.noise_stds
        return self.design @ parameters_P + noise_TR


@dataclass(frozen=True)
class LeastSquares:
    """A minimum-norm least-squares estimator, linear in the observations: θ̂ = E y.

    Attributes:
        matrix: E (P, R). Weighted: (W A)† W with W = diag(1/σ), the maximum-likelihood estimator; unweighted: A†.
        covariance: E diag(σ²) Eᵀ (P, P), its exact covariance. θ̂ is unbiased for what the design determines.
    """

    matrix: Floats
    covariance: Floats

    def estimate(self, observations_TR: Floats) -> Floats:
        """Return θ̂ (T, P) for observations (T, R)."""
        estimates: Floats = observations_TR @ self.matrix.T
        return estimates


def least_squares(
    model: LinearGaussianModel, *, weighting: Weighting = "weighted", tolerance: float = TOLERANCE
) -> LeastSquares:
    """Return the minimum-norm least-squares estimator of all parameters, weighted by 1/σ² or unweighted.

    Singular values below √tolerance × the largest count as zero: they are square roots of informations.
    """
    weights_R = 1 / model.noise_stds if weighting == "weighted" else np.ones_like(model.noise_stds)
    estimator = np.linalg.pinv(model.design * weights_R[:, None], rcond=float(np.sqrt(tolerance))) * weights_R
    return LeastSquares(estimator, (estimator * model.noise_stds**2) @ estimator.T)


def _stacked(designs: npt.ArrayLike) -> Floats:
    """Return one design (M, D) as a stack (1, M, D); a stack as it is."""
    stacked: Floats = np.asarray(designs, dtype=np.float64)
    return stacked[None] if stacked.ndim == 2 else stacked
