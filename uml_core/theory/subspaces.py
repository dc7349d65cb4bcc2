"""Symmetric positive semi-definite matrices with a stated tolerance: ranges, kernels, pseudo-inverses, Loewner order.

An eigenvalue counts as zero when it is at most `tolerance` times the largest one of the same matrix (`TOLERANCE` unless
told otherwise). Everything is float64: range and kernel are decisions, and float32 cannot make them.

Shape legend: D parameters, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
TOLERANCE = 1e-9
SAME = 1e-8  # two variances closer than this, relatively, are equal


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues above the tolerance (R,), their eigenvectors (D, R), and a basis of the kernel (D, D − R)."""

    values: Floats
    range_basis: Floats
    kernel_basis: Floats

    @property
    def rank(self) -> int:
        """The number of eigenvalues above the tolerance."""
        return len(self.values)


def as_information(matrix: npt.ArrayLike, *, name: str = "information", tolerance: float = TOLERANCE) -> Floats:
    """Return a matrix (D, D) as float64, made exactly symmetric.

    Raises:
        ValueError: it is not square, not finite, not symmetric, or has an eigenvalue below −tolerance × the largest.
    """
    given: Floats = np.asarray(matrix, dtype=np.float64)
    if given.ndim != 2 or given.shape[0] != given.shape[1]:
        raise ValueError(f"{name} has shape {given.shape}; expected a square matrix (D, D)")
    if not np.isfinite(given).all():
        raise ValueError(f"{name} holds NaN or infinity; expected finite numbers")
    scale = float(np.abs(given).max(initial=0.0))
    if not np.allclose(given, given.T, rtol=0.0, atol=1e-8 * scale):
        raise ValueError(f"{name} is not symmetric; expected a Fisher information, which is")
    symmetric: Floats = (given + given.T) / 2
    smallest = float(np.linalg.eigvalsh(symmetric).min(initial=0.0))
    if smallest < -max(tolerance, 1e-8) * scale * len(symmetric):
        raise ValueError(f"{name} has eigenvalue {smallest:g}; expected a positive semi-definite matrix")
    return symmetric


def as_direction(direction: npt.ArrayLike, dim: int) -> Floats:
    """Return a direction (D,) as float64, as long as it was given.

    Raises:
        ValueError: it has another shape, is zero, or is not finite.
    """
    vector: Floats = np.asarray(direction, dtype=np.float64)
    if vector.shape != (dim,):
        raise ValueError(f"direction has shape {vector.shape}; expected ({dim},), as wide as the information")
    if not np.isfinite(vector).all() or not np.any(vector):
        raise ValueError("direction is zero or not finite; expected a vector that points somewhere")
    return vector


def spectrum(matrix_DD: Floats, *, tolerance: float = TOLERANCE, scale: float | None = None) -> Spectrum:
    """Return range and kernel of a symmetric positive semi-definite matrix as orthonormal bases.

    `scale` stands in for the largest eigenvalue where the matrix may be nothing but the rounding of larger ones.
    """
    values, vectors = np.linalg.eigh(matrix_DD)
    largest = max(float(values.max(initial=0.0)), 0.0) if scale is None else scale
    kept = values > tolerance * largest
    return Spectrum(values[kept], vectors[:, kept], vectors[:, ~kept])


def pseudo_inverse(matrix_DD: Floats, *, tolerance: float = TOLERANCE, scale: float | None = None) -> Floats:
    """Return M†: the inverse on the range, zero on the kernel; `scale` as for `spectrum`."""
    parts = spectrum(matrix_DD, tolerance=tolerance, scale=scale)
    inverse: Floats = (parts.range_basis / parts.values) @ parts.range_basis.T
    return inverse


def in_range(matrix_DD: Floats, vector_D: Floats, *, tolerance: float = TOLERANCE) -> bool:
    """Return whether a vector lies in the range: what sticks out is at most tolerance times its length."""
    basis = spectrum(matrix_DD, tolerance=tolerance).range_basis
    outside = vector_D - basis @ (basis.T @ vector_D)
    return bool(np.linalg.norm(outside) <= tolerance * np.linalg.norm(vector_D))


def range_contains(larger_DD: Floats, smaller_DD: Floats, *, tolerance: float = TOLERANCE) -> bool:
    """Return whether range(smaller) ⊆ range(larger)."""
    basis = spectrum(smaller_DD, tolerance=tolerance).range_basis
    return all(in_range(larger_DD, column, tolerance=tolerance) for column in basis.T)


def is_positive_definite(matrix_DD: Floats, *, tolerance: float = TOLERANCE) -> bool:
    """Return whether M ≻ 0, that is, whether its kernel is empty."""
    values = np.linalg.eigvalsh(matrix_DD)
    return bool(len(values) > 0 and values.min() > tolerance * max(float(values.max()), 0.0))


def strictly_below(smaller: Floats, larger: Floats, *, tolerance: float = TOLERANCE) -> bool:
    """Return whether smaller ≺ larger: their difference has no eigenvalue at or below tolerance × their own size."""
    return _smallest_gap(smaller, larger) > tolerance * _scale(smaller, larger)


def at_most(smaller: Floats, larger: Floats, *, tolerance: float = TOLERANCE) -> bool:
    """Return whether smaller ⪯ larger, up to tolerance × their own size."""
    return _smallest_gap(smaller, larger) >= -tolerance * _scale(smaller, larger)


def _smallest_gap(smaller: Floats, larger: Floats) -> float:
    return float(np.linalg.eigvalsh(larger - smaller).min(initial=np.inf))


def _scale(*matrices: Floats) -> float:
    return max(float(np.abs(matrix).max(initial=0.0)) for matrix in matrices)


def unit(vector: Any) -> Floats:
    """Return a vector scaled to length 1, its largest entry positive, so that the same line gives the same vector."""
    scaled: Floats = np.asarray(vector, dtype=np.float64) / np.linalg.norm(vector)
    return scaled if scaled[np.argmax(np.abs(scaled))] > 0 else -scaled
