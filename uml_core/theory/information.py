"""The linear-Gaussian model on plain arrays: informations, directions, and its least-squares estimators, in float64.

    modality k, sample i:   y_ki = A_ki θc + B_ki θk + ε_ki,   ε_ki ~ N(0, σ_k² I)

θc (shared) and θk (specific to modality k) are fixed and unknown, designs A and B are known (arXiv 2510.08492,
section 3, there with K = 2). Samples of different modalities are independent and unpaired. What a modality tells about
(θc, θk) is its Fisher information Σ_i [A_i B_i]ᵀ [A_i B_i] / σ²; what it tells about θc **alone**, θk being unknown, is
the Schur complement of the nuisance block, and these add up over independent modalities.

    x = Modality(Ac, Ax, noise_std=0.3)     # (N, M, C) and (N, M, S)
    y = Modality(Bc, By, noise_std=0.3)
    exchange_rate(x.shared_information, y.shared_information, direction)   # samples of X that one sample of Y replaces

An eigenvalue counts as zero when it is at most `TOLERANCE` times the largest one of the same matrix. Everything is
float64: range and kernel are decisions, and float32 cannot make them.

Shape legend: N samples, M observed numbers a sample, D parameters, C shared parameters, S specific parameters, R all
rows of all samples, P all parameters (C + all S).
"""

from __future__ import annotations

import math
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt
from scipy.linalg import block_diag, null_space, orth, pinvh

Floats = npt.NDArray[np.float64]
TOLERANCE = 1e-9
SAME = 1e-8  # two variances closer than this, relatively, are equal
range_of, kernel_of = partial(orth, rcond=TOLERANCE), partial(null_space, rcond=TOLERANCE)  # orthonormal columns
pseudo_inverse = partial(pinvh, rtol=TOLERANCE)  # M†: the inverse on the range, zero on the kernel


def as_information(matrix: npt.ArrayLike) -> Floats:
    """A matrix (D, D) as float64, made exactly symmetric.

    Raises:
        ValueError: it is not square, not finite, not symmetric, or has an eigenvalue below zero, beyond rounding.
    """
    given: Floats = np.asarray(matrix, dtype=np.float64)
    scale, square = float(np.abs(given).max(initial=0.0)), given.ndim == 2 and given.shape[0] == given.shape[1]
    if not square or not math.isfinite(scale) or not np.allclose(given, given.T, rtol=0.0, atol=SAME * scale):
        raise ValueError(f"information has shape {given.shape}; expected a symmetric matrix (D, D) of finite numbers")
    symmetric: Floats = (given + given.T) / 2
    smallest = float(np.linalg.eigvalsh(symmetric).min(initial=0.0))
    if smallest < -SAME * scale * len(symmetric):
        raise ValueError(f"information has eigenvalue {smallest:g}; expected a positive semi-definite matrix")
    return symmetric


def as_direction(direction: npt.ArrayLike, dim: int) -> Floats:
    """A direction (D,) as float64, as long as it was given. Raises ValueError for another shape, or zero."""
    vector: Floats = np.asarray(direction, dtype=np.float64)
    if vector.shape != (dim,) or not np.isfinite(vector).all() or not np.any(vector):
        raise ValueError(f"direction has shape {vector.shape} or is zero; expected finite numbers ({dim},), not all 0")
    return vector


def in_range(matrix_DD: Floats, vector_D: Floats) -> bool:
    """Whether a vector lies in the range: what sticks out is at most TOLERANCE times its length."""
    basis = range_of(matrix_DD)
    outside = vector_D - basis @ (basis.T @ vector_D)
    return bool(np.linalg.norm(outside) <= TOLERANCE * np.linalg.norm(vector_D))


def strictly_below(smaller: Floats, larger: Floats) -> bool:
    """Whether smaller ≺ larger, beyond rounding (TOLERANCE × their own size)."""
    return _gap(smaller, larger) > TOLERANCE


def at_most(smaller: Floats, larger: Floats) -> bool:
    """Whether smaller ⪯ larger, up to rounding (`SAME` × their own size)."""
    return _gap(smaller, larger) >= -SAME


def is_positive_definite(matrix_DD: Floats) -> bool:
    """Whether M ≻ 0, that is, whether its kernel is empty."""
    return strictly_below(np.zeros_like(matrix_DD), matrix_DD)


def _gap(smaller: Floats, larger: Floats) -> float:
    """The smallest eigenvalue of larger − smaller (inf for no parameters), over the largest entry of the two."""
    size = max(float(np.abs(matrix).max(initial=0.0)) for matrix in (smaller, larger))
    return float(np.linalg.eigvalsh(larger - smaller).min(initial=np.inf)) / (size or 1.0)


def schur_information(information: npt.ArrayLike, shared_dim: int) -> Floats:
    """I_cc − I_cx I_xx† I_xc (C, C): what is known about the first C parameters when the others are not.

    What is only rounding error of the larger matrix would be taken for information: it is set to zero.
    """
    full = as_information(information)
    if not 1 <= shared_dim <= len(full):
        raise ValueError(f"shared_dim is {shared_dim}; expected 1 to {len(full)}, the information's width")
    shared, cross = full[:shared_dim, :shared_dim], full[:shared_dim, shared_dim:]
    difference = shared - cross @ pseudo_inverse(full[shared_dim:, shared_dim:]) @ cross.T
    values, vectors = np.linalg.eigh((difference + difference.T) / 2)
    floor = TOLERANCE * float(np.abs(shared).max(initial=0.0))
    cleaned: Floats = (vectors * np.where(values > floor, values, 0.0)) @ vectors.T
    return (cleaned + cleaned.T) / 2


def directional_variance(information: npt.ArrayLike, direction: npt.ArrayLike) -> float:
    """vᵀI†v, the least variance of an unbiased estimate of vᵀθc; `inf` where v is not in range(I).

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
    # Of all w with I_X w = v, which differ by the kernel of I_X, the one that Y sees least.
    solution, kernel, size = pseudo_inverse(matrix_x) @ vector, kernel_of(matrix_x), np.linalg.norm(matrix_y)
    of_kernel = pinvh(kernel.T @ matrix_y @ kernel, atol=TOLERANCE * size, rtol=0.0)
    least_seen = solution - kernel @ (of_kernel @ (kernel.T @ matrix_y @ solution))
    return bool(np.linalg.norm(matrix_y @ least_seen) > TOLERANCE * size * np.linalg.norm(least_seen))


def outperforming_direction(information_x: npt.ArrayLike, information_y: npt.ArrayLike) -> Floats | None:
    """A unit direction (C,) in which any number of Y samples beats as many more of X (Theorem 3).

    The part of range(I_Y) orthogonal to range(I_X) that Y sees best: no number of X samples makes its variance finite,
    one sample of Y does. None where range(I_Y) ⊆ range(I_X).
    """
    matrix_x, matrix_y = as_information(information_x), as_information(information_y)
    if all(in_range(matrix_x, column) for column in range_of(matrix_y).T):
        return None
    kernel = kernel_of(matrix_x)
    best: Floats = kernel @ np.linalg.eigh(kernel.T @ matrix_y @ kernel)[1][:, -1]
    return best if best[np.argmax(np.abs(best))] > 0 else -best  # of v and −v always the same one


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
    solution = np.linalg.solve(matrix_x, as_direction(direction, len(matrix_x)))
    return float(solution @ matrix_y @ solution) / float(solution @ matrix_x @ solution)


class Modality:
    """One modality: what each sample sees of θc and of its own parameters, and its noise.

    Args:
        shared: designs (N, M, C) of θc, or one (M, C).
        specific: designs (N, M, S) of the modality's own parameters, or one (M, S); None for no nuisance.
        noise_std: σ, the noise's standard deviation, not its variance.
    """

    def __init__(self, shared: npt.ArrayLike, specific: npt.ArrayLike | None = None, *, noise_std: float = 1.0) -> None:
        given = np.asarray(shared, dtype=np.float64)
        own = given[..., :0] if specific is None else np.asarray(specific, dtype=np.float64)
        self.shared_designs, self.specific_designs = (each[None] if each.ndim == 2 else each for each in (given, own))
        if not 0 < noise_std < math.inf:
            raise ValueError(f"noise_std is {noise_std}; expected a number > 0")
        self.noise_std, self.shared_dim = noise_std, self.shared_designs.shape[2]

    @cached_property
    def information(self) -> Floats:
        """Fisher information (C + S, C + S) about (θc, θk): Σ_i [A_i B_i]ᵀ [A_i B_i] / σ²."""
        rows = np.concatenate([self.shared_designs, self.specific_designs], axis=2)
        rows = rows.reshape(-1, rows.shape[2])
        return as_information(rows.T @ rows / self.noise_std**2)

    @property
    def shared_block(self) -> Floats:
        """I_cc (C, C), the information about θc if the specific parameters were known."""
        return self.information[: self.shared_dim, : self.shared_dim]

    @cached_property
    def shared_information(self) -> Floats:
        """S (C, C), the Schur complement: the information about θc, the specific parameters being unknown."""
        return schur_information(self.information, self.shared_dim)


class LinearGaussianModel:
    """Modalities over the same shared parameters: all rows against all parameters.

    Attributes:
        design: (R, P), columns θc, then θ_1 … θ_K; zeros where a modality lacks θ_k.
        noise_stds: σ of every row (R,).
        shared_information: Σ_k S_k (C, C): informations of independent modalities add up, as Schur complements.
        shared_block: Σ_k (I_k)_cc (C, C), the matrix that the paper's Theorem 1 compares.
    """

    def __init__(self, *modalities: Modality) -> None:
        self.shared_dim = modalities[0].shared_dim
        shared = [each.shared_designs.reshape(-1, self.shared_dim) for each in modalities]
        specific = [each.specific_designs.reshape(len(rows), -1) for each, rows in zip(modalities, shared, strict=True)]
        self.design: Floats = np.hstack([np.vstack(shared), block_diag(*specific)])
        self.noise_stds: Floats = np.repeat([each.noise_std for each in modalities], [len(rows) for rows in shared])
        self.shared_information = as_information(sum(each.shared_information for each in modalities))
        self.shared_block = as_information(sum(each.shared_block for each in modalities))

    def estimator(self, *, weighted: bool = True) -> Floats:
        """E (C, R) of the minimum-norm least-squares estimate θ̂c = E y, unbiased for what the design determines.

        Weighted by 1/σ², it is the maximum-likelihood estimator. Singular values below √TOLERANCE × the largest count
        as zero: they are square roots of informations.
        """
        weights_R = 1 / self.noise_stds if weighted else np.ones_like(self.noise_stds)
        inverse_PR = np.linalg.pinv(self.design * weights_R[:, None], rcond=math.sqrt(TOLERANCE)) * weights_R
        return inverse_PR[: self.shared_dim]

    def covariance(self, estimator_CR: Floats) -> Floats:
        """The exact covariance E diag(σ²) Eᵀ (C, C) of an estimate θ̂c = E y."""
        covariance: Floats = (estimator_CR * self.noise_stds**2) @ estimator_CR.T
        return covariance
