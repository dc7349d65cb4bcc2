"""The paper's statements (arXiv 2510.08492, section 3 and its appendix) tried on given designs or informations.

In: `Modality`s or matrices. Out: a `Check`: are the paper's hypotheses met, is its conclusion true here, is the
corrected form. The corrected form is not taken from the formula it is about: a variance is finite where M w = v can be
solved, and strict reductions are what the algebra says compared with the variances themselves.

Letters: M_X = Σ AcᵀAc / σx² and M_Y = Σ BcᵀBc / σy² are the Fisher informations about θc with θx and θy known;
S_X and S_Y are their Schur complements, with θx and θy unknown. A ≺ B: B − A is positive definite. The statements in
words, and the matrices they are tried on, are in `statements`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from uml_core.theory.information import (
    SAME,
    TOLERANCE,
    Floats,
    LinearGaussianModel,
    Modality,
    as_direction,
    as_information,
    at_most,
    directional_variance,
    in_range,
    is_positive_definite,
    is_strict_reduction,
    outperforming_direction,
    pseudo_inverse,
    range_of,
    strictly_below,
)


@dataclass(frozen=True)
class Check:
    """A statement tried on given matrices.

    Attributes:
        hypotheses: the paper's hypotheses, and whether these matrices meet them.
        paper_concludes: whether the paper's conclusion is true here, hypotheses met or not.
        corrected_holds: whether the corrected form is true here.
        numbers: the values this rests on; variances may be infinite.
    """

    hypotheses: Mapping[str, bool]
    paper_concludes: bool
    corrected_holds: bool
    numbers: Mapping[str, float]

    @property
    def paper_holds(self) -> bool | None:
        """Whether the paper's form is true here; None where its hypotheses are not met."""
        return self.paper_concludes if all(self.hypotheses.values()) else None


def theorem_1(x: Modality, y: Modality) -> Check:
    """Does information about θc rise, and does its variance fall, when Y joins X?"""
    both = LinearGaussianModel(x, y)
    alone, joint = pseudo_inverse(x.shared_information), pseudo_inverse(both.shared_information)
    determined = is_positive_definite(x.shared_information)
    rises, falls = strictly_below(x.shared_block, both.shared_block), determined and strictly_below(joint, alone)
    variance_as_said = falls == is_positive_definite(y.shared_information) and at_most(joint, alone)
    return Check(
        {
            "some Bc_j has full column rank": any(np.linalg.matrix_rank(b) == y.shared_dim for b in y.shared_designs),
            "X alone determines θc (S_X ≻ 0)": determined,
        },
        rises and falls,
        rises == is_positive_definite(y.shared_block) and (variance_as_said or not determined),
        {
            "total variance, X": float(np.trace(alone)) if determined else math.inf,
            "total variance, X and Y": float(np.trace(joint)) if determined else math.nan,
            "the paper's variance, X and Y": float(np.trace(pseudo_inverse(both.shared_block))),
            "smallest eigenvalue of M_Y": float(np.linalg.eigvalsh(y.shared_block)[0]),
            "smallest eigenvalue of S_Y": float(np.linalg.eigvalsh(y.shared_information)[0]),
        },
    )


def joint_least_squares(x: Modality, y: Modality) -> Check:
    """Does least squares over X and Y, unweighted and weighted by 1/σ², do no worse than X alone?"""
    model, alone = LinearGaussianModel(x, y), pseudo_inverse(x.shared_information)
    unweighted, weighted = (model.covariance(model.estimator(weighted=each)) for each in (False, True))
    determined = is_positive_definite(x.shared_information)
    return Check(
        {"X alone determines θc (S_X ≻ 0)": determined},
        at_most(unweighted, alone),
        at_most(weighted, alone) or not determined,
        {
            "total variance, X": float(np.trace(alone)) if determined else math.inf,
            "total variance, unweighted": float(np.trace(unweighted)),
            "total variance, weighted": float(np.trace(weighted)),
        },
    )


class _Along:
    """What the statements about one direction v look at: variances with X, and with X and Y."""

    def __init__(self, information_x: npt.ArrayLike, information_y: npt.ArrayLike, direction: npt.ArrayLike) -> None:
        self.x, self.y = as_information(information_x), as_information(information_y)
        self.v = as_direction(direction, len(self.x))
        self.alone = directional_variance(self.x, self.v)
        self.joint = directional_variance(self.x + self.y, self.v)
        self.variances = {"variance along v, X": self.alone, "variance along v, X and Y": self.joint}
        self.not_larger = self.joint <= self.alone * (1 + SAME)
        self.solvable = _solvable(self.x + self.y, self.v)
        self.a, self.b = _eigenvalue(self.x, self.v), _eigenvalue(self.y, self.v)  # NaN: v is no eigenvector
        self.seen_by_y = float(self.v @ self.y @ self.v)
        self.y_sees_v = self.seen_by_y > SAME * float(np.abs(self.y).max(initial=0.0)) * float(self.v @ self.v)


def theorem_2(information_x: npt.ArrayLike, information_y: npt.ArrayLike, direction: npt.ArrayLike) -> Check:
    """The variance along v with X, and with X and Y: never larger, and finite where Theorem 2 says so?"""
    given = _Along(information_x, information_y, direction)
    seen_by_x = in_range(given.x, given.v)
    return Check(
        {"v ∈ range(M_X), or vᵀM_Y v > 0": seen_by_x or given.y_sees_v},
        given.not_larger if seen_by_x else given.solvable,
        given.not_larger and given.solvable == math.isfinite(given.joint),
        given.variances,
    )


def corollary_1(information_x: npt.ArrayLike, information_y: npt.ArrayLike, direction: npt.ArrayLike) -> Check:
    """Does the variance along a common eigenvector shrink by a / (a + b)?"""
    given = _Along(information_x, information_y, direction)
    hypotheses = {"M_X v = a v with a > 0": given.a > SAME, "M_Y v = b v": not math.isnan(given.b)}
    met = all(hypotheses.values())
    expected = given.a / (given.a + given.b) if met else math.nan
    holds = met and math.isclose(given.joint / given.alone, expected, rel_tol=SAME)
    return Check(hypotheses, holds, holds or not met, {**given.variances, "a / (a + b)": expected})


def corollary_2(information_x: npt.ArrayLike, information_y: npt.ArrayLike, direction: npt.ArrayLike) -> Check:
    """X is blind along v: does Y make the variance finite?"""
    given = _Along(information_x, information_y, direction)
    return Check(
        {"M_X v = 0": abs(given.a) <= SAME, "vᵀM_Y v > 0": given.y_sees_v},
        given.solvable,
        given.solvable == math.isfinite(given.joint),
        given.variances,
    )


def corollary_3(information_x: npt.ArrayLike, information_y: npt.ArrayLike, direction: npt.ArrayLike) -> Check:
    """Does the variance along an eigenvector of M_X fall strictly because vᵀM_Y v > 0?"""
    given = _Along(information_x, information_y, direction)
    falls = given.joint < given.alone * (1 - SAME)
    return Check(
        {"M_X v = a v with a > 0": given.a > SAME, "vᵀM_Y v > 0": given.y_sees_v},
        falls,
        falls == is_strict_reduction(given.x, given.y, given.v) and given.not_larger,
        {**given.variances, "vᵀM_Y v": given.seen_by_y},
    )


def lemma_2(smaller: npt.ArrayLike, larger: npt.ArrayLike) -> Check:
    """Does 0 ⪯ A ≺ B turn into B† ≺ A†?"""
    matrix_a, matrix_b = as_information(smaller), as_information(larger)
    met, basis = strictly_below(matrix_a, matrix_b), range_of(matrix_a)
    inverse_a, inverse_b = pseudo_inverse(matrix_a), pseudo_inverse(matrix_b)
    on_range = strictly_below(basis.T @ inverse_b @ basis, basis.T @ inverse_a @ basis)
    smallest = float(np.linalg.eigvalsh(inverse_a - inverse_b)[0])
    return Check(
        {"A ≺ B": met},
        strictly_below(inverse_b, inverse_a),
        on_range or not met,
        {"smallest eigenvalue of A† − B†": smallest, "rank of A": float(basis.shape[1])},
    )


def theorem_3(information_x: npt.ArrayLike, information_y: npt.ArrayLike, num_samples: int = 1) -> Check:
    """Is there a direction in which m samples of Y beat m more of X? X has one sample to begin with."""
    matrix_x, matrix_y = as_information(information_x), as_information(information_y)
    direction = outperforming_direction(matrix_x, matrix_y)
    more_x, with_y, unseen_by_x = math.nan, math.nan, False
    if direction is not None:
        joint = matrix_x + num_samples * matrix_y
        more_x = directional_variance((1 + num_samples) * matrix_x, direction)
        with_y = directional_variance(joint, direction)
        unseen_by_x = bool(np.linalg.norm(matrix_x @ direction) <= SAME * np.linalg.norm(matrix_x))
        unseen_by_x = unseen_by_x and _solvable(joint, direction)
    beats, met = with_y < more_x, range_of(matrix_x + matrix_y).shape[1] > range_of(matrix_x).shape[1]
    return Check(
        {"range(M_Y) ⊄ range(M_X)": met},
        beats,
        beats and unseen_by_x if met else direction is None,
        {f"variance along v, {num_samples} more X": more_x, f"variance along v, {num_samples} Y": with_y},
    )


def k_modalities(designs: Sequence[npt.ArrayLike], noise_covariance: npt.ArrayLike) -> Check:
    """Is the sum over K modalities the information of all observations together?

    Args:
        designs: one stacked design (R_k, C) a modality, no nuisance parameters.
        noise_covariance: covariance (R, R) of the noise of all rows, in the order of the designs; positive definite.
    """
    blocks: list[Floats] = [np.asarray(design, dtype=np.float64) for design in designs]
    noise, design = as_information(noise_covariance), np.vstack(blocks)
    modality_of_row = np.repeat(np.arange(len(blocks)), [len(block) for block in blocks])
    own = np.where(modality_of_row[:, None] == modality_of_row, noise, 0.0)

    def information(covariance: Floats, rows: slice = slice(None)) -> Floats:
        found: Floats = design[rows].T @ np.linalg.solve(covariance[rows, rows], design[rows])
        return found

    together, summed = information(noise), information(own)
    before = slice(len(design) - len(blocks[-1]))  # all modalities but the last
    independent, adds = bool(np.allclose(own, noise)), bool(np.allclose(summed, together, rtol=SAME))
    return Check(
        {"noise independent across modalities": independent},
        adds,
        (adds or not independent) and at_most(information(noise, before), together),
        {"trace of the sum": float(np.trace(summed)), "trace of the information": float(np.trace(together))},
    )


def _eigenvalue(matrix: Floats, vector: Floats) -> float:
    """λ with M v = λ v, or NaN where v is no eigenvector."""
    value = float(vector @ matrix @ vector / (vector @ vector))
    scale = max(float(np.abs(matrix).max(initial=0.0)), 1.0) * float(np.linalg.norm(vector))
    return value if np.linalg.norm(matrix @ vector - value * vector) <= SAME * scale else math.nan


def _solvable(matrix: Floats, vector: Floats) -> bool:
    """Whether some w has M w = v, by least squares: then wᵀ(the observations' score) estimates vᵀθ unbiased."""
    solution = np.linalg.lstsq(matrix, vector, rcond=TOLERANCE)[0]
    return bool(np.linalg.norm(matrix @ solution - vector) <= SAME * np.linalg.norm(vector))
