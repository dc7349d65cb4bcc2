"""The linear-Gaussian model on plain arrays: informations, directions, and its least-squares estimators, in float64.

    modality k, sample i:   y_ki = A_ki θc + B_ki θk + ε_ki,   ε_ki ~ N(0, σ_k² I)

θc (shared) and θk (specific to modality k) are fixed and unknown, designs A and B are known (arXiv 2510.08492,
section 3, there with K = 2). Samples of different modalities are independent and unpaired. What a modality tells about
(θc, θk) is its Fisher information Σ_i [A_i B_i]ᵀ [A_i B_i] / σ²; what it tells about θc **alone**, θk being unknown, is
the Schur complement of the nuisance block, and these add up over independent modalities.

    x = Modality.from_designs(Ac, Ax, noise_std=0.3)     # (N, M, C) and (N, M, S)
    y = Modality.from_designs(Bc, By, noise_std=0.3)
    exchange_rate(x.shared_information, y.shared_information, direction)   # samples of X that one sample of Y replaces

An eigenvalue counts as zero when it is at most `TOLERANCE` times the largest one of the same matrix. Everything is
float64: range and kernel are decisions, and float32 cannot make them.

Shape legend: N samples, M observed numbers a sample, D parameters, C shared parameters, S specific parameters, R rank,
or all rows of all samples; P all parameters (C + all S), T trials.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import block_diag, eigh

Floats = npt.NDArray[np.float64]
TOLERANCE = 1e-9
SAME = 1e-8  # two variances closer than this, relatively, are equal


class Spectrum(NamedTuple):
    """Eigenvalues above the tolerance (R,), their eigenvectors (D, R), and a basis of the kernel (D, D − R)."""

    values: Floats
    range_basis: Floats
    kernel_basis: Floats


def as_information(matrix: npt.ArrayLike) -> Floats:
    """A matrix (D, D) as float64, made exactly symmetric.

    Raises:
        ValueError: it is not square, not finite, not symmetric, or has an eigenvalue below zero, beyond rounding.
    """
    given: Floats = np.asarray(matrix, dtype=np.float64)
    if given.ndim != 2 or given.shape[0] != given.shape[1] or not np.isfinite(given).all():
        raise ValueError(f"information has shape {given.shape}; expected a square matrix (D, D) of finite numbers")
    scale = float(np.abs(given).max(initial=0.0))
    if not np.allclose(given, given.T, rtol=0.0, atol=1e-8 * scale):
        raise ValueError("information is not symmetric; expected a Fisher information, which is")
    symmetric: Floats = (given + given.T) / 2
    smallest = float(np.linalg.eigvalsh(symmetric).min(initial=0.0))
    if smallest < -1e-8 * scale * len(symmetric):
        raise ValueError(f"information has eigenvalue {smallest:g}; expected a positive semi-definite matrix")
    return symmetric


def as_direction(direction: npt.ArrayLike, dim: int) -> Floats:
    """A direction (D,) as float64, as long as it was given. Raises ValueError for another shape, or zero."""
    vector: Floats = np.asarray(direction, dtype=np.float64)
    if vector.shape != (dim,) or not np.isfinite(vector).all() or not np.any(vector):
        raise ValueError(f"direction has shape {vector.shape} or is zero; expected finite numbers ({dim},), not all 0")
    return vector


def spectrum(matrix_DD: Floats, *, scale: float | None = None) -> Spectrum:
    """Range and kernel of a symmetric positive semi-definite matrix as orthonormal bases.

    `scale` stands in for the largest eigenvalue where the matrix may be nothing but the rounding of larger ones.
    """
    values, vectors = np.linalg.eigh(matrix_DD)
    kept = values > TOLERANCE * (max(float(values.max(initial=0.0)), 0.0) if scale is None else scale)
    return Spectrum(values[kept], vectors[:, kept], vectors[:, ~kept])


def pseudo_inverse(matrix_DD: Floats, *, scale: float | None = None) -> Floats:
    """M†: the inverse on the range, zero on the kernel; `scale` as for `spectrum`.

    Not scipy's `pinvh`: range, kernel and inverse must agree on what counts as zero, so all come from one `spectrum`.
    """
    parts = spectrum(matrix_DD, scale=scale)
    inverse: Floats = (parts.range_basis / parts.values) @ parts.range_basis.T
    return inverse


def in_range(matrix_DD: Floats, vector_D: Floats) -> bool:
    """Whether a vector lies in the range: what sticks out is at most TOLERANCE times its length."""
    basis = spectrum(matrix_DD).range_basis
    outside = vector_D - basis @ (basis.T @ vector_D)
    return bool(np.linalg.norm(outside) <= TOLERANCE * np.linalg.norm(vector_D))


def range_contains(larger_DD: Floats, smaller_DD: Floats) -> bool:
    """Whether range(smaller) ⊆ range(larger)."""
    return all(in_range(larger_DD, column) for column in spectrum(smaller_DD).range_basis.T)


def is_positive_definite(matrix_DD: Floats) -> bool:
    """Whether M ≻ 0, that is, whether its kernel is empty."""
    values = np.linalg.eigvalsh(matrix_DD)
    return bool(len(values) > 0 and values.min() > TOLERANCE * max(float(values.max()), 0.0))


def strictly_below(smaller: Floats, larger: Floats) -> bool:
    """Whether smaller ≺ larger: their difference has no eigenvalue at or below TOLERANCE × their own size."""
    gap, scale = _gap(smaller, larger)
    return gap > TOLERANCE * scale


def at_most(smaller: Floats, larger: Floats) -> bool:
    """Whether smaller ⪯ larger, up to rounding (`SAME` × their own size)."""
    gap, scale = _gap(smaller, larger)
    return gap >= -SAME * scale


def _gap(smaller: Floats, larger: Floats) -> tuple[float, float]:
    """The smallest eigenvalue of larger − smaller, and the largest entry of the two; (inf, 0) for no parameters."""
    gap = float(np.linalg.eigvalsh(larger - smaller).min(initial=np.inf))
    return gap, max(float(np.abs(matrix).max(initial=0.0)) for matrix in (smaller, larger))


def fisher_information(design_NMD: npt.ArrayLike, noise_std: float = 1.0) -> Floats:
    """Σ_i A_iᵀ A_i / σ² (D, D) of designs (N, M, D). σ is the noise's standard deviation, not its variance."""
    designs = np.asarray(design_NMD, dtype=np.float64)
    if designs.ndim != 3 or not designs.size or not 0 < noise_std < math.inf:
        raise ValueError(f"designs have shape {designs.shape} and noise_std is {noise_std}; expected (N, M, D) and > 0")
    return as_information(sum(design.T @ design / noise_std**2 for design in designs))


def schur_information(information: npt.ArrayLike, shared_dim: int) -> Floats:
    """I_cc − I_cx I_xx† I_xc (C, C): what is known about the first C parameters when the others are not.

    With C = D there is no nuisance and the information is returned as it is.
    """
    full = as_information(information)
    if not 1 <= shared_dim <= len(full):
        raise ValueError(f"shared_dim is {shared_dim}; expected 1 to {len(full)}, the information's width")
    shared, cross = full[:shared_dim, :shared_dim], full[:shared_dim, shared_dim:]
    if not cross.size:
        return shared.copy()
    difference = shared - cross @ pseudo_inverse(full[shared_dim:, shared_dim:]) @ cross.T
    # What is only rounding error of the larger matrix would be taken for information: it is set to zero.
    values, vectors = np.linalg.eigh((difference + difference.T) / 2)
    floor = TOLERANCE * float(np.abs(shared).max(initial=0.0))
    cleaned: Floats = (vectors * np.where(values > floor, values, 0.0)) @ vectors.T
    return (cleaned + cleaned.T) / 2


def directional_variance(information: npt.ArrayLike, direction: npt.ArrayLike) -> float:
    """Vᵀ I† v, the least variance of an unbiased estimate of vᵀθc; `inf` where v is not in range(I).

    A vector twice as long has four times the variance.
    """
    matrix = as_information(information)
    vector = as_direction(direction, len(matrix))
    return float(vector @ pseudo_inverse(matrix) @ vector) if in_range(matrix, vector) else math.inf


def is_strict_reduction(information_x: npt.ArrayLike, information_y: npt.ArrayLike, direction: npt.ArrayLike) -> bool:
    """Whether adding Y lowers the variance along v: vᵀ(I_X + I_Y)†v < vᵀI_X†v (corrected Corollary 3).

    Decided by algebra, not by comparing two rounded numbers. For v in range(I_X): strict unless some w has I_X w = v
    and I_Y w = 0. For v outside it the variance of X is infinite, and Y lowers it where v ∈ range(I_X + I_Y).
    """
    matrix_x, matrix_y = as_information(information_x), as_information(information_y)
    vector = as_direction(direction, len(matrix_x))
    if not in_range(matrix_x, vector):
        return in_range(matrix_x + matrix_y, vector)
    least_seen = _least_seen(matrix_x, matrix_y, vector)
    scale = np.linalg.norm(matrix_y) * np.linalg.norm(least_seen)
    return bool(np.linalg.norm(matrix_y @ least_seen) > TOLERANCE * scale)


def outperforming_direction(information_x: npt.ArrayLike, information_y: npt.ArrayLike) -> Floats | None:
    """A unit direction (C,) in which m samples of Y beat m more samples of X, for every m; None if none exists.

    Where range(I_Y) ⊄ range(I_X) (Theorem 3), v is the part of range(I_Y) orthogonal to range(I_X) that Y sees best:
    no number of X samples makes its variance finite, one sample of Y does. Otherwise v = I_X w with w of the largest
    generalised eigenvalue λ, I_Y w = λ I_X w, where λ > 1: N samples of X and m of Y leave (N + m)/(N + mλ) of the
    variance that N + m of X leave. λ ≤ 1 means I_Y ⪯ I_X: X is at least as good in every direction, and the answer
    is None.
    """
    matrix_x, matrix_y = as_information(information_x), as_information(information_y)
    parts = spectrum(matrix_x)
    if not range_contains(matrix_x, matrix_y):
        _, vectors = np.linalg.eigh(parts.kernel_basis.T @ matrix_y @ parts.kernel_basis)
        return _unit(parts.kernel_basis @ vectors[:, -1])
    if not len(parts.values):
        return None
    rates, vectors = eigh(parts.range_basis.T @ matrix_y @ parts.range_basis, np.diag(parts.values))
    return _unit(parts.range_basis @ (parts.values * vectors[:, -1])) if rates[-1] > 1 + SAME else None


def exchange_rate(
    information_x: npt.ArrayLike, information_y: npt.ArrayLike, direction: npt.ArrayLike | None = None
) -> float:
    """How many samples of X one sample of Y replaces, by trace or along a direction.

    Args:
        information_x: what one sample of X tells, (C, C), or n of them; positive definite.
        information_y: what one sample of Y tells, or as many as there are of X.
        direction: v (C,); None compares traces, tr(I_Y) / tr(I_X), which averages over all directions.

    Along v the rate is uᵀI_Y u / uᵀI_X u with u = I_X⁻¹ v: the ratio of the slopes with which the variance of vᵀθc
    falls when Y, or X, joins many samples of X. Along a common eigenvector it is b/a (Corollary 1).

    Raises:
        ValueError: X alone does not determine θc: a sample of Y then replaces any number of X, or none.
    """
    matrix_x, matrix_y = as_information(information_x), as_information(information_y)
    if not is_positive_definite(matrix_x):
        raise ValueError("information_x is singular; expected a modality that determines θc by itself")
    if direction is None:
        return float(np.trace(matrix_y)) / float(np.trace(matrix_x))
    solution = pseudo_inverse(matrix_x) @ as_direction(direction, len(matrix_x))
    return float(solution @ matrix_y @ solution) / float(solution @ matrix_x @ solution)


def _least_seen(matrix_x: Floats, matrix_y: Floats, vector: Floats) -> Floats:
    """Return, of all w with I_X w = v, the one that Y sees least; v must lie in range(I_X).

    They differ by the kernel of I_X. vᵀ(I_X + t I_Y)†v = max_w 2 wᵀv − wᵀ(I_X + t I_Y) w, so that the variance falls
    with slope wᵀI_Y w at t = 0, and falls at all only where this is not 0.
    """
    solution, kernel = pseudo_inverse(matrix_x) @ vector, spectrum(matrix_x).kernel_basis
    of_kernel = pseudo_inverse(kernel.T @ matrix_y @ kernel, scale=float(np.linalg.norm(matrix_y)))
    least_seen: Floats = solution - kernel @ (of_kernel @ (kernel.T @ matrix_y @ solution))
    return least_seen


def _unit(vector: Floats) -> Floats:
    """A vector scaled to length 1, its largest entry positive, so that the same line gives the same vector."""
    scaled: Floats = vector / np.linalg.norm(vector)
    return scaled if scaled[np.argmax(np.abs(scaled))] > 0 else -scaled


@dataclass(frozen=True)
class Modality:
    """One modality: what each sample sees of θc (N, M, C) and of its own parameters (N, M, S), and its noise's σ."""

    shared_designs: Floats
    specific_designs: Floats
    noise_std: float = 1.0

    @classmethod
    def from_designs(
        cls, shared: npt.ArrayLike, specific: npt.ArrayLike | None = None, *, noise_std: float = 1.0
    ) -> Modality:
        """Build a modality from stacks (N, M, C) and (N, M, S), or one design each; None for no nuisance."""
        stacked = [np.asarray(each, dtype=np.float64) for each in (shared, shared if specific is None else specific)]
        of_shared, of_specific = (each[None] if each.ndim == 2 else each for each in stacked)
        return cls(of_shared, of_specific[..., :0] if specific is None else of_specific, noise_std)

    @property
    def shared_dim(self) -> int:
        """C."""
        return int(self.shared_designs.shape[2])

    @cached_property
    def information(self) -> Floats:
        """Fisher information (C + S, C + S) about (θc, θk)."""
        return fisher_information(np.concatenate([self.shared_designs, self.specific_designs], axis=-1), self.noise_std)

    @property
    def shared_block(self) -> Floats:
        """I_cc (C, C), the information about θc if the specific parameters were known."""
        return self.information[: self.shared_dim, : self.shared_dim]

    @property
    def shared_information(self) -> Floats:
        """S (C, C), the Schur complement: the information about θc, the specific parameters being unknown."""
        return schur_information(self.information, self.shared_dim)


@dataclass(frozen=True)
class LeastSquares:
    """A minimum-norm least-squares estimator, linear in the observations: θ̂ = E y.

    Attributes:
        matrix: E (P, R). Weighted: (W A)† W with W = diag(1/σ), the maximum-likelihood estimator; unweighted: A†.
        covariance: E diag(σ²) Eᵀ (P, P), its exact covariance. θ̂ is unbiased for what the design determines.
    """

    matrix: Floats
    covariance: Floats


class LinearGaussianModel:
    """Modalities over the same shared parameters: all rows against all parameters.

    Attributes:
        design: (R, P), columns θc, then θ_1 … θ_K; zeros where a modality lacks θ_k.
        noise_stds: σ of every row (R,).
    """

    def __init__(self, *modalities: Modality) -> None:
        if len({modality.shared_dim for modality in modalities}) != 1:
            raise ValueError("modalities differ in their shared widths; expected one C for all of at least one")
        self.modalities, self.shared_dim = modalities, modalities[0].shared_dim
        shared = [each.shared_designs.reshape(-1, self.shared_dim) for each in modalities]
        specific = [each.specific_designs.reshape(len(rows), -1) for each, rows in zip(modalities, shared, strict=True)]
        self.design: Floats = np.hstack([np.vstack(shared), block_diag(*specific)])
        stds = [np.full(len(rows), each.noise_std) for each, rows in zip(modalities, shared, strict=True)]
        self.noise_stds: Floats = np.concatenate(stds)

    @property
    def shared_information(self) -> Floats:
        """Σ_k S_k (C, C): informations of independent modalities add up, as Schur complements."""
        return as_information(sum(modality.shared_information for modality in self.modalities))

    @property
    def shared_block(self) -> Floats:
        """Σ_k (I_k)_cc (C, C), the matrix that the paper's Theorem 1 compares."""
        return as_information(sum(modality.shared_block for modality in self.modalities))

    def observe(self, parameters_P: Floats, rng: np.random.Generator, *, num_trials: int) -> Floats:
        """Draw all observations anew, num_trials times (T, R)."""
        noise_TR = rng.standard_normal((num_trials, len(self.noise_stds))) * self.noise_stds
        return self.design @ parameters_P + noise_TR

    def least_squares(self, weighting: Literal["weighted", "unweighted"] = "weighted") -> LeastSquares:
        """The minimum-norm least-squares estimator of all parameters, weighted by 1/σ² or unweighted.

        Singular values below √TOLERANCE × the largest count as zero: they are square roots of informations.
        """
        weights_R = 1 / self.noise_stds if weighting == "weighted" else np.ones_like(self.noise_stds)
        estimator = np.linalg.pinv(self.design * weights_R[:, None], rcond=float(np.sqrt(TOLERANCE))) * weights_R
        return LeastSquares(estimator, (estimator * self.noise_stds**2) @ estimator.T)
