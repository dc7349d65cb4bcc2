"""What an auxiliary modality adds along one direction of the shared parameters.

All functions take informations about the shared parameters alone, (C, C): Fisher informations where there are no
nuisance parameters, Schur complements (`information.schur_information`) where there are. Directions need not be units.

Shape legend: C shared parameters.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh

from uml_core.theory.information import total_information
from uml_core.theory.subspaces import (
    SAME,
    TOLERANCE,
    Floats,
    as_direction,
    as_information,
    in_range,
    pseudo_inverse,
    range_contains,
    spectrum,
    unit,
)


def directional_variance(
    information: npt.ArrayLike, direction: npt.ArrayLike, *, tolerance: float = TOLERANCE
) -> float:
    """Return vᵀ I† v, the least variance of an unbiased estimate of vᵀθc; `inf` where v is not in range(I).

    Args:
        information: (C, C).
        direction: v (C,). A vector twice as long has four times the variance.
        tolerance: eigenvalues below tolerance × the largest count as zero.

    Raises:
        ValueError: shapes that do not fit, no positive semi-definite matrix, or a zero direction.
    """
    matrix = as_information(information)
    vector = as_direction(direction, len(matrix))
    if not in_range(matrix, vector, tolerance=tolerance):
        return math.inf
    return float(vector @ pseudo_inverse(matrix, tolerance=tolerance) @ vector)


def is_strict_reduction(
    information_x: npt.ArrayLike,
    information_y: npt.ArrayLike,
    direction: npt.ArrayLike,
    *,
    tolerance: float = TOLERANCE,
) -> bool:
    """Return whether adding Y lowers the variance along v: vᵀ(I_X + I_Y)†v < vᵀI_X†v (corrected Corollary 3).

    Decided by algebra, not by comparing two rounded numbers. For v in range(I_X): strict unless some w has I_X w = v
    and I_Y w = 0. For v outside it the variance of X is infinite, and Y lowers it where v ∈ range(I_X + I_Y).
    """
    matrix_x, matrix_y, vector = _pair(information_x, information_y, direction)
    if not in_range(matrix_x, vector, tolerance=tolerance):
        return in_range(total_information(matrix_x, matrix_y), vector, tolerance=tolerance)
    least_seen = _least_seen(matrix_x, matrix_y, vector, tolerance)
    scale = np.linalg.norm(matrix_y) * np.linalg.norm(least_seen)
    return bool(np.linalg.norm(matrix_y @ least_seen) > tolerance * scale)


def outperforming_direction(
    information_x: npt.ArrayLike, information_y: npt.ArrayLike, *, tolerance: float = TOLERANCE
) -> Floats | None:
    """Return a unit direction (C,) in which m samples of Y beat m more samples of X, for every m; None if none exists.

    Args:
        information_x: what one sample of X tells, (C, C), or n of them.
        information_y: what one sample of Y tells, or as many as there are of X.

    Where range(I_Y) ⊄ range(I_X) (Theorem 3), v is the part of range(I_Y) orthogonal to range(I_X) that Y sees best:
    no number of X samples makes its variance finite, one sample of Y does. Otherwise v = I_X w with w of the largest
    generalised eigenvalue λ, I_Y w = λ I_X w, where λ > 1: N samples of X and m of Y leave (N + m)/(N + mλ) of the
    variance that N + m of X leave. λ ≤ 1 means I_Y ⪯ I_X: X is at least as good in every direction, and the answer
    is None.
    """
    matrix_x, matrix_y = _informations(information_x, information_y)
    parts = spectrum(matrix_x, tolerance=tolerance)
    if not range_contains(matrix_x, matrix_y, tolerance=tolerance):
        _, vectors = np.linalg.eigh(parts.kernel_basis.T @ matrix_y @ parts.kernel_basis)
        return unit(parts.kernel_basis @ vectors[:, -1])
    if parts.rank == 0:
        return None
    within_y = parts.range_basis.T @ matrix_y @ parts.range_basis
    rates, vectors = eigh(within_y, np.diag(parts.values))
    if rates[-1] <= 1 + SAME:
        return None
    return unit(parts.range_basis @ (parts.values * vectors[:, -1]))


def exchange_rate(
    information_x: npt.ArrayLike,
    information_y: npt.ArrayLike,
    direction: npt.ArrayLike | None = None,
    *,
    tolerance: float = TOLERANCE,
) -> float:
    """Return how many samples of X one sample of Y replaces, by trace or along a direction.

    Args:
        information_x: what one sample of X tells, (C, C), or n of them.
        information_y: what one sample of Y tells, or as many as there are of X.
        direction: v (C,); None compares traces, tr(I_Y) / tr(I_X), which averages over all directions.

    Along v the rate is uᵀI_Y u / uᵀI_X u with u = I_X† v: the ratio of the slopes with which the variance of vᵀθc falls
    when Y, or X, joins many samples of X. (Where I_X has a kernel, u is the solution of I_X u = v that Y sees least.)
    Along a common eigenvector it is b/a (Corollary 1). It is `inf` where X is blind (v outside range(I_X)) and Y is
    not, 0 where Y adds nothing, and NaN where both are blind.
    """
    matrix_x, matrix_y = _informations(information_x, information_y)
    if direction is None:
        return _ratio(float(np.trace(matrix_y)), float(np.trace(matrix_x)))
    vector = as_direction(direction, len(matrix_x))
    if not in_range(matrix_x, vector, tolerance=tolerance):
        return math.inf if in_range(matrix_x + matrix_y, vector, tolerance=tolerance) else math.nan
    if not is_strict_reduction(matrix_x, matrix_y, vector, tolerance=tolerance):
        return 0.0
    least_seen = _least_seen(matrix_x, matrix_y, vector, tolerance)
    return _ratio(float(least_seen @ matrix_y @ least_seen), float(least_seen @ matrix_x @ least_seen))


def _least_seen(matrix_x: Floats, matrix_y: Floats, vector: Floats, tolerance: float) -> Floats:
    """Return, of all w with I_X w = v, the one that Y sees least; v must lie in range(I_X).

    They differ by the kernel of I_X. vᵀ(I_X + t I_Y)†v = max_w 2 wᵀv − wᵀ(I_X + t I_Y) w, so that the variance falls
    with slope wᵀI_Y w at t = 0, and falls at all only where this is not 0.
    """
    solution = pseudo_inverse(matrix_x, tolerance=tolerance) @ vector
    kernel = spectrum(matrix_x, tolerance=tolerance).kernel_basis
    of_kernel = pseudo_inverse(kernel.T @ matrix_y @ kernel, tolerance=tolerance, scale=float(np.linalg.norm(matrix_y)))
    least_seen: Floats = solution - kernel @ (of_kernel @ (kernel.T @ matrix_y @ solution))
    return least_seen


def _ratio(of_y: float, of_x: float) -> float:
    if of_x > 0:
        return of_y / of_x
    return math.inf if of_y > 0 else math.nan


def _informations(information_x: npt.ArrayLike, information_y: npt.ArrayLike) -> tuple[Floats, Floats]:
    matrix_x = as_information(information_x, name="information_x")
    matrix_y = as_information(information_y, name="information_y")
    if matrix_x.shape != matrix_y.shape:
        raise ValueError(f"information_y has shape {matrix_y.shape}; expected {matrix_x.shape}, as information_x")
    return matrix_x, matrix_y


def _pair(
    information_x: npt.ArrayLike, information_y: npt.ArrayLike, direction: npt.ArrayLike
) -> tuple[Floats, Floats, Floats]:
    matrix_x, matrix_y = _informations(information_x, information_y)
    return matrix_x, matrix_y, as_direction(direction, len(matrix_x))
