"""Every theorem, lemma and corollary about informations as a function that tries it on given matrices.

Those about designs and estimators (Theorem 1, joint least squares, K modalities) are in `model_theorems`.

Each returns a `TheoremCheck`: are the paper's hypotheses met, is its conclusion true here, is the corrected form. The
corrected form is not taken from the formula it is about: a variance is finite where M w = v can be solved, and strict
reductions are what the algebra says compared with the variances themselves.

Shape legend: C shared parameters.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from uml_core.theory import statements
from uml_core.theory.directions import directional_variance, is_strict_reduction, outperforming_direction
from uml_core.theory.information import total_information
from uml_core.theory.statements import TheoremCheck
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
    strictly_below,
)


def check_theorem_2(
    information_x: npt.ArrayLike, information_y: npt.ArrayLike, direction: npt.ArrayLike
) -> TheoremCheck:
    """Try Theorem 2: the variance along v with X, and with X and Y."""
    matrix_x, matrix_y, vector = _matrices(information_x, information_y, direction)
    seen = in_range(matrix_x, vector)
    hypotheses = {"v ∈ range(M_X), or vᵀM_Y v > 0": seen or _positive(matrix_y, vector)}
    alone, joint = directional_variance(matrix_x, vector), directional_variance(matrix_x + matrix_y, vector)
    not_larger = joint <= alone * (1 + SAME)
    solvable = _solvable(matrix_x + matrix_y, vector)
    conclusion = not_larger if seen else solvable
    return TheoremCheck(
        statements.THEOREM_2,
        hypotheses,
        conclusion if all(hypotheses.values()) else None,
        not_larger and solvable == math.isfinite(joint),
        {"variance along v, X": alone, "variance along v, X and Y": joint},
        f"The variance along v {_goes(alone, joint)}.",
    )


def check_corollary_1(
    information_x: npt.ArrayLike, information_y: npt.ArrayLike, direction: npt.ArrayLike
) -> TheoremCheck:
    """Try Corollary 1: along a common eigenvector the variance shrinks by a / (a + b)."""
    matrix_x, matrix_y, vector = _matrices(information_x, information_y, direction)
    a, b = _eigenvalue(matrix_x, vector), _eigenvalue(matrix_y, vector)
    hypotheses = {"M_X v = a v with a > 0": a is not None and a > SAME, "M_Y v = b v": b is not None}
    alone, joint = directional_variance(matrix_x, vector), directional_variance(matrix_x + matrix_y, vector)
    met = all(hypotheses.values())
    expected = (a or 0.0) / ((a or 0.0) + (b or 0.0)) if met else math.nan
    holds = met and math.isclose(joint / alone, expected, rel_tol=SAME)
    return TheoremCheck(
        statements.COROLLARY_1,
        hypotheses,
        holds if met else None,
        holds or not met,
        {"variance along v, X": alone, "variance along v, X and Y": joint, "a / (a + b)": expected},
        f"The variance along v {_goes(alone, joint)}; a / (a + b) is {_number(expected)}.",
    )


def check_corollary_2(
    information_x: npt.ArrayLike, information_y: npt.ArrayLike, direction: npt.ArrayLike
) -> TheoremCheck:
    """Try Corollary 2: X is blind along v; does Y make the variance finite?"""
    matrix_x, matrix_y, vector = _matrices(information_x, information_y, direction)
    a = _eigenvalue(matrix_x, vector)
    hypotheses = {"M_X v = 0": a is not None and abs(a) <= SAME, "vᵀM_Y v > 0": _positive(matrix_y, vector)}
    joint = directional_variance(matrix_x + matrix_y, vector)
    solvable = _solvable(matrix_x + matrix_y, vector)
    return TheoremCheck(
        statements.COROLLARY_2,
        hypotheses,
        solvable if all(hypotheses.values()) else None,
        solvable == math.isfinite(joint),
        {"variance along v, X": directional_variance(matrix_x, vector), "variance along v, X and Y": joint},
        f"With Y the variance along v is {_number(joint)}.",
    )


def check_corollary_3(
    information_x: npt.ArrayLike, information_y: npt.ArrayLike, direction: npt.ArrayLike
) -> TheoremCheck:
    """Try Corollary 3: does the variance along an eigenvector of M_X fall strictly because vᵀM_Y v > 0?"""
    matrix_x, matrix_y, vector = _matrices(information_x, information_y, direction)
    a = _eigenvalue(matrix_x, vector)
    hypotheses = {"M_X v = a v with a > 0": a is not None and a > SAME, "vᵀM_Y v > 0": _positive(matrix_y, vector)}
    alone, joint = directional_variance(matrix_x, vector), directional_variance(matrix_x + matrix_y, vector)
    falls = joint < alone * (1 - SAME)
    strict = is_strict_reduction(matrix_x, matrix_y, vector)
    return TheoremCheck(
        statements.COROLLARY_3,
        hypotheses,
        falls if all(hypotheses.values()) else None,
        falls == strict and joint <= alone * (1 + SAME),
        {
            "variance along v, X": alone,
            "variance along v, X and Y": joint,
            "vᵀM_Y v": float(vector @ matrix_y @ vector),
        },
        f"The variance along v {_goes(alone, joint)}; the corrected form says it {'falls' if strict else 'stays'}.",
    )


def check_lemma_2(smaller: npt.ArrayLike, larger: npt.ArrayLike) -> TheoremCheck:
    """Try Lemma 2: does 0 ⪯ A ≺ B turn into B† ≺ A†?"""
    matrix_a, matrix_b = as_information(smaller, name="smaller"), as_information(larger, name="larger")
    hypotheses = {"A ≺ B": strictly_below(matrix_a, matrix_b)}
    inverse_a, inverse_b = pseudo_inverse(matrix_a), pseudo_inverse(matrix_b)
    basis = spectrum(matrix_a).range_basis
    on_range = strictly_below(basis.T @ inverse_b @ basis, basis.T @ inverse_a @ basis)
    everywhere = strictly_below(inverse_b, inverse_a)
    met = all(hypotheses.values())
    gaps = np.linalg.eigvalsh(inverse_a - inverse_b)
    return TheoremCheck(
        statements.LEMMA_2,
        hypotheses,
        everywhere if met else None,
        on_range or not met,
        {"smallest eigenvalue of A† − B†": float(gaps[0]), "rank of A": float(spectrum(matrix_a).rank)},
        f"B† ≺ A† is {'true' if everywhere else 'false'}; on range(A) it is {'true' if on_range else 'false'}.",
    )


def check_theorem_3(information_x: npt.ArrayLike, information_y: npt.ArrayLike, num_samples: int = 1) -> TheoremCheck:
    """Try Theorem 3: is there a direction in which m samples of Y beat m more of X?

    Args:
        information_x: what one sample of X tells (C, C).
        information_y: what one sample of Y tells (C, C).
        num_samples: m; X has one sample to begin with.
    """
    matrix_x, matrix_y = total_information(information_x), total_information(information_y)
    hypotheses = {"range(M_Y) ⊄ range(M_X)": not range_contains(matrix_x, matrix_y)}
    met = all(hypotheses.values())
    direction = outperforming_direction(matrix_x, matrix_y)
    more_x, with_y, unseen_by_x = math.nan, math.nan, False
    if direction is not None:
        joint = matrix_x + num_samples * matrix_y
        more_x = directional_variance((1 + num_samples) * matrix_x, direction)
        with_y = directional_variance(joint, direction)
        unseen_by_x = bool(np.linalg.norm(matrix_x @ direction) <= SAME * np.linalg.norm(matrix_x))
        unseen_by_x = unseen_by_x and _solvable(joint, direction)
    beats = with_y < more_x
    return TheoremCheck(
        statements.THEOREM_3,
        hypotheses,
        beats if met else None,
        (beats and unseen_by_x) if met else (beats == (direction is not None)),
        {f"variance along v, {num_samples} more X": more_x, f"variance along v, {num_samples} Y": with_y},
        f"With m = {num_samples} more of X the variance along v is {_number(more_x)}, with m of Y {_number(with_y)}.",
    )


def _matrices(
    information_x: npt.ArrayLike, information_y: npt.ArrayLike, direction: npt.ArrayLike
) -> tuple[Floats, Floats, Floats]:
    matrix_x, matrix_y = as_information(information_x), as_information(information_y)
    total_information(matrix_x, matrix_y)
    return matrix_x, matrix_y, as_direction(direction, len(matrix_x))


def _positive(matrix: Floats, vector: Floats) -> bool:
    """Return whether vᵀMv > 0, beyond rounding."""
    scale = float(np.abs(matrix).max(initial=0.0)) * float(vector @ vector)
    return float(vector @ matrix @ vector) > SAME * scale


def _eigenvalue(matrix: Floats, vector: Floats) -> float | None:
    """Return λ with M v = λ v, or None where v is no eigenvector."""
    value = float(vector @ matrix @ vector / (vector @ vector))
    scale = max(float(np.abs(matrix).max(initial=0.0)), 1.0) * float(np.linalg.norm(vector))
    return value if np.linalg.norm(matrix @ vector - value * vector) <= SAME * scale else None


def _solvable(matrix: Floats, vector: Floats) -> bool:
    """Return whether some w has M w = v, by least squares: then wᵀ(the observations' score) estimates vᵀθ unbiased."""
    solution = np.linalg.lstsq(matrix, vector, rcond=TOLERANCE)[0]
    return bool(np.linalg.norm(matrix @ solution - vector) <= SAME * np.linalg.norm(vector))


def _goes(before: float, after: float) -> str:
    same = before == after or math.isclose(before, after, rel_tol=SAME)
    stays = "stays infinite" if math.isinf(before) else f"stays at {_number(before)}"
    return stays if same else f"goes from {_number(before)} to {_number(after)}"


def _number(value: float) -> str:
    return "infinite" if math.isinf(value) else f"{value:.6g}"
