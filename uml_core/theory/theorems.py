"""The paper's statements (arXiv 2510.08492, section 3 and its appendix), each beside the form that holds, as checks.

In: designs or informations. Out: a `TheoremCheck`: are the paper's hypotheses met, is its conclusion true here, is the
corrected form. The corrected form is not taken from the formula it is about: a variance is finite where M w = v can be
solved, and strict reductions are what the algebra says compared with the variances themselves.

Letters: M_X = Σ AcᵀAc / σx² and M_Y = Σ BcᵀBc / σy² are the Fisher informations about θc with θx and θy known;
S_X and S_Y are their Schur complements, with θx and θy unknown. A ≺ B: B − A is positive definite.

Shape legend: C shared parameters, R rows of a stacked design.
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
    range_contains,
    spectrum,
    strictly_below,
)


@dataclass(frozen=True)
class Statement:
    """One statement: the paper's form, the corrected one, and what sets them apart ("" where they agree)."""

    name: str
    paper: str
    corrected: str
    difference: str


@dataclass(frozen=True)
class TheoremCheck:
    """A statement tried on given matrices.

    Attributes:
        statement: what was tried.
        hypotheses: the paper's hypotheses, and whether these matrices meet them.
        paper_holds: whether the paper's conclusion is true here; None where its hypotheses are not met.
        corrected_holds: whether the corrected form is true here.
        numbers: the values this rests on; variances may be infinite.
        words: what was found, in a sentence.
    """

    statement: Statement
    hypotheses: Mapping[str, bool]
    paper_holds: bool | None
    corrected_holds: bool
    numbers: Mapping[str, float]
    words: str

    @property
    def is_counter_example(self) -> bool:
        """Whether the paper's hypotheses are met and its conclusion is false."""
        return self.paper_holds is False


THEOREM_1 = Statement(
    "Theorem 1",
    "If some Bc_j has full column rank, (I_X + I_Y)cc ≻ (I_X)cc; equivalently, Var(joint)cc ≺ Var(X)cc.",
    "(I_X + I_Y)cc ≻ (I_X)cc if and only if M_Y ≻ 0. With S_X ≻ 0, Var(joint)cc = (S_X + S_Y)⁻¹ ⪯ S_X⁻¹ = Var(X)cc, "
    "strictly if and only if S_Y ≻ 0.",
    "The two halves are not equivalent: with unknown θx and θy the variance is the inverse of a Schur complement, not "
    "of a block. Where By can explain all that Bc does, the information rises and the variance does not move.",
)
JOINT_LEAST_SQUARES = Statement(
    "Joint least squares",
    "The joint estimator is ordinary least squares over all samples of X and Y; it beats X alone.",
    "Least squares weighted by 1/σ² is the maximum-likelihood estimator and never does worse than X alone.",
    "Unweighted, with σx ≠ σy, it is not the maximum-likelihood estimator: a noisy Y spoils a clean X.",
)
THEOREM_2 = Statement(
    "Theorem 2",
    "Y never raises the variance along v (1), and makes it finite where X is blind, v ∉ range(M_X), and Y is not, "
    "vᵀM_Y v > 0 (2).",
    "(1) as stated. (2) The variance becomes finite if and only if v ∈ range(M_X + M_Y).",
    "Seeing something along v is not enough: Y must not mix it with what nobody sees.",
)
COROLLARY_1 = Statement(
    "Corollary 1",
    "If M_X v = a v and M_Y v = b v with a > 0, the variance along v shrinks by the factor a / (a + b).",
    "As stated.",
    "",
)
COROLLARY_2 = Statement(
    "Corollary 2",
    "If X is blind, M_X v = 0, and Y is not, vᵀM_Y v > 0, the variance along v falls from infinite to finite.",
    "With M_X v = 0, it becomes finite if and only if v ∈ range(M_X + M_Y).",
    "Inherited from Theorem 2 (2).",
)
COROLLARY_3 = Statement(
    "Corollary 3",
    "If v is an eigenvector of M_X, M_X v = a v with a > 0, and vᵀM_Y v > 0, the variance along v falls strictly.",
    "For v ∈ range(M_X): vᵀ(M_X + M_Y)†v ≤ vᵀM_X†v, strictly if and only if no w has M_X w = v and M_Y w = 0.",
    "Y may spend what it sees along v on a direction that X does not see.",
)
LEMMA_2 = Statement(
    "Lemma 2",
    "If 0 ⪯ A ≺ B, then B† ≺ A†.",
    "If 0 ⪯ A ≺ B, then vᵀB†v < vᵀA†v for every v ≠ 0 in range(A), the complement of A's kernel.",
    "On the kernel A† is 0 and B† is not, so the order turns round there.",
)
THEOREM_3 = Statement(
    "Theorem 3",
    "If range(M_Y) ⊄ range(M_X), there is a direction in which m samples of Y beat m more samples of X.",
    "As stated, for new X samples that see no more than the old ones. Constructive: v is the part of a vector of "
    "range(M_Y) that is orthogonal to range(M_X).",
    "",
)
K_MODALITIES = Statement(
    "K modalities",
    "Over K modalities, information adds up: I = Σ_k I_k.",
    "I = Σ_k I_k where the modalities' noise is independent given θ. In any case another modality never lowers it.",
    "Noise that modalities share is counted twice by the sum.",
)
STATEMENTS = (
    *(THEOREM_1, JOINT_LEAST_SQUARES, THEOREM_2, COROLLARY_1, COROLLARY_2, COROLLARY_3, LEMMA_2, THEOREM_3),
    K_MODALITIES,
)


def check_theorem_1(x: Modality, y: Modality) -> TheoremCheck:
    """Does information about θc rise, and does its variance fall, when Y joins X?"""
    both = LinearGaussianModel(x, y)
    has_variance = is_positive_definite(x.shared_information)
    hypotheses = {
        "some Bc_j has full column rank": any(np.linalg.matrix_rank(b) == y.shared_dim for b in y.shared_designs),
        "X alone determines θc (S_X ≻ 0)": has_variance,
    }
    rises = strictly_below(x.shared_block, both.shared_block)
    alone, joint = pseudo_inverse(x.shared_information), pseudo_inverse(both.shared_information)
    falls = has_variance and strictly_below(joint, alone)
    as_it_should = not has_variance or (falls == is_positive_definite(y.shared_information) and at_most(joint, alone))
    numbers = {
        "total variance, X": float(np.trace(alone)) if has_variance else math.inf,
        "total variance, X and Y": float(np.trace(joint)) if has_variance else math.nan,
        "the paper's variance, X and Y": float(np.trace(pseudo_inverse(both.shared_block))),
        "smallest eigenvalue of M_Y": float(np.linalg.eigvalsh(y.shared_block)[0]),
        "smallest eigenvalue of S_Y": float(np.linalg.eigvalsh(y.shared_information)[0]),
    }
    return _check(
        THEOREM_1,
        hypotheses,
        paper=rises and falls,
        corrected=rises == is_positive_definite(y.shared_block) and as_it_should,
        numbers=numbers,
        words=f"The information about θc {'rises' if rises else 'does not rise'} strictly; its variance "
        f"{'falls' if falls else 'does not fall'} strictly.",
    )


def check_joint_least_squares(x: Modality, y: Modality) -> TheoremCheck:
    """Does least squares over X and Y, unweighted and weighted by 1/σ², do no worse than X alone?"""
    model, shared = LinearGaussianModel(x, y), slice(x.shared_dim)
    alone, met = pseudo_inverse(x.shared_information), is_positive_definite(x.shared_information)
    of_unweighted = model.least_squares("unweighted").covariance[shared, shared]
    of_weighted = model.least_squares().covariance[shared, shared]
    unweighted, weighted = at_most(of_unweighted, alone), at_most(of_weighted, alone)
    numbers = {
        "total variance, X": float(np.trace(alone)) if met else math.inf,
        "total variance, unweighted": float(np.trace(of_unweighted)),
        "total variance, weighted": float(np.trace(of_weighted)),
    }
    return _check(
        JOINT_LEAST_SQUARES,
        {"X alone determines θc (S_X ≻ 0)": met},
        paper=unweighted,
        corrected=not met or weighted,
        numbers=numbers,
        words=f"Beside X alone, the joint estimate is {'no worse' if unweighted else 'worse'} unweighted and "
        f"{'no worse' if weighted or not met else 'worse'} weighted.",
    )


def check_theorem_2(
    information_x: npt.ArrayLike, information_y: npt.ArrayLike, direction: npt.ArrayLike
) -> TheoremCheck:
    """The variance along v with X, and with X and Y: never larger, and finite where Theorem 2 says so?"""
    given = _Along(information_x, information_y, direction)
    seen = in_range(given.x, given.v)
    return _check(
        THEOREM_2,
        {"v ∈ range(M_X), or vᵀM_Y v > 0": seen or given.y_sees_v},
        paper=given.not_larger if seen else given.solvable,
        corrected=given.not_larger and given.solvable == math.isfinite(given.joint),
        numbers=given.variances,
        words=f"The variance along v {given.goes}.",
    )


def check_corollary_1(
    information_x: npt.ArrayLike, information_y: npt.ArrayLike, direction: npt.ArrayLike
) -> TheoremCheck:
    """Does the variance along a common eigenvector shrink by a / (a + b)?"""
    given = _Along(information_x, information_y, direction)
    a, b = _eigenvalue(given.x, given.v), _eigenvalue(given.y, given.v)
    met = a is not None and a > SAME and b is not None
    expected = (a or 0.0) / ((a or 0.0) + (b or 0.0)) if met else math.nan
    holds = met and math.isclose(given.joint / given.alone, expected, rel_tol=SAME)
    return _check(
        COROLLARY_1,
        {"M_X v = a v with a > 0": a is not None and a > SAME, "M_Y v = b v": b is not None},
        paper=holds,
        corrected=holds or not met,
        numbers={**given.variances, "a / (a + b)": expected},
        words=f"The variance along v {given.goes}; a / (a + b) is {_number(expected)}.",
    )


def check_corollary_2(
    information_x: npt.ArrayLike, information_y: npt.ArrayLike, direction: npt.ArrayLike
) -> TheoremCheck:
    """X is blind along v: does Y make the variance finite?"""
    given = _Along(information_x, information_y, direction)
    a = _eigenvalue(given.x, given.v)
    return _check(
        COROLLARY_2,
        {"M_X v = 0": a is not None and abs(a) <= SAME, "vᵀM_Y v > 0": given.y_sees_v},
        paper=given.solvable,
        corrected=given.solvable == math.isfinite(given.joint),
        numbers=given.variances,
        words=f"With Y the variance along v is {_number(given.joint)}.",
    )


def check_corollary_3(
    information_x: npt.ArrayLike, information_y: npt.ArrayLike, direction: npt.ArrayLike
) -> TheoremCheck:
    """Does the variance along an eigenvector of M_X fall strictly because vᵀM_Y v > 0?"""
    given = _Along(information_x, information_y, direction)
    a = _eigenvalue(given.x, given.v)
    falls = given.joint < given.alone * (1 - SAME)
    strict = is_strict_reduction(given.x, given.y, given.v)
    return _check(
        COROLLARY_3,
        {"M_X v = a v with a > 0": a is not None and a > SAME, "vᵀM_Y v > 0": given.y_sees_v},
        paper=falls,
        corrected=falls == strict and given.not_larger,
        numbers={**given.variances, "vᵀM_Y v": float(given.v @ given.y @ given.v)},
        words=f"The variance along v {given.goes}; the corrected form says it {'falls' if strict else 'stays'}.",
    )


def check_lemma_2(smaller: npt.ArrayLike, larger: npt.ArrayLike) -> TheoremCheck:
    """Does 0 ⪯ A ≺ B turn into B† ≺ A†?"""
    matrix_a, matrix_b = as_information(smaller), as_information(larger)
    met = strictly_below(matrix_a, matrix_b)
    inverse_a, inverse_b = pseudo_inverse(matrix_a), pseudo_inverse(matrix_b)
    basis = spectrum(matrix_a).range_basis
    on_range = strictly_below(basis.T @ inverse_b @ basis, basis.T @ inverse_a @ basis)
    everywhere = strictly_below(inverse_b, inverse_a)
    gaps = np.linalg.eigvalsh(inverse_a - inverse_b)
    return _check(
        LEMMA_2,
        {"A ≺ B": met},
        paper=everywhere,
        corrected=on_range or not met,
        numbers={"smallest eigenvalue of A† − B†": float(gaps[0]), "rank of A": float(basis.shape[1])},
        words=f"B† ≺ A† is {'true' if everywhere else 'false'}; on range(A) it is {'true' if on_range else 'false'}.",
    )


def check_theorem_3(information_x: npt.ArrayLike, information_y: npt.ArrayLike, num_samples: int = 1) -> TheoremCheck:
    """Is there a direction in which m samples of Y beat m more of X? X has one sample to begin with."""
    matrix_x, matrix_y = as_information(information_x), as_information(information_y)
    met = not range_contains(matrix_x, matrix_y)
    direction = outperforming_direction(matrix_x, matrix_y)
    more_x, with_y, unseen_by_x = math.nan, math.nan, False
    if direction is not None:
        joint = matrix_x + num_samples * matrix_y
        more_x = directional_variance((1 + num_samples) * matrix_x, direction)
        with_y = directional_variance(joint, direction)
        unseen_by_x = bool(np.linalg.norm(matrix_x @ direction) <= SAME * np.linalg.norm(matrix_x))
        unseen_by_x = unseen_by_x and _solvable(joint, direction)
    beats = with_y < more_x
    return _check(
        THEOREM_3,
        {"range(M_Y) ⊄ range(M_X)": met},
        paper=beats,
        corrected=(beats and unseen_by_x) if met else (beats == (direction is not None)),
        numbers={f"variance along v, {num_samples} more X": more_x, f"variance along v, {num_samples} Y": with_y},
        words=f"With m = {num_samples} more of X the variance along v is {_number(more_x)}, with m of Y "
        f"{_number(with_y)}.",
    )


def check_k_modalities(designs: Sequence[npt.ArrayLike], noise_covariance: npt.ArrayLike) -> TheoremCheck:
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
    grows = len(blocks) == 1 or at_most(information(noise, before), together)
    independent, adds = bool(np.allclose(own, noise)), bool(np.allclose(summed, together, rtol=SAME))
    return _check(
        K_MODALITIES,
        {"noise independent across modalities": independent},
        paper=adds,
        corrected=(adds or not independent) and grows,
        numbers={"trace of the sum": float(np.trace(summed)), "trace of the information": float(np.trace(together))},
        words=f"The sum {'is' if adds else 'is not'} the information of all {len(blocks)} modalities together.",
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

    @property
    def y_sees_v(self) -> bool:
        """Whether vᵀM_Y v > 0, beyond rounding."""
        scale = float(np.abs(self.y).max(initial=0.0)) * float(self.v @ self.v)
        return float(self.v @ self.y @ self.v) > SAME * scale

    @property
    def goes(self) -> str:
        same = self.alone == self.joint or math.isclose(self.alone, self.joint, rel_tol=SAME)
        stays = "stays infinite" if math.isinf(self.alone) else f"stays at {_number(self.alone)}"
        return stays if same else f"goes from {_number(self.alone)} to {_number(self.joint)}"


def _check(
    statement: Statement,
    hypotheses: Mapping[str, bool],
    *,
    paper: bool,
    corrected: bool,
    numbers: Mapping[str, float],
    words: str,
) -> TheoremCheck:
    return TheoremCheck(statement, hypotheses, paper if all(hypotheses.values()) else None, corrected, numbers, words)


def _eigenvalue(matrix: Floats, vector: Floats) -> float | None:
    """Λ with M v = λ v, or None where v is no eigenvector."""
    value = float(vector @ matrix @ vector / (vector @ vector))
    scale = max(float(np.abs(matrix).max(initial=0.0)), 1.0) * float(np.linalg.norm(vector))
    return value if np.linalg.norm(matrix @ vector - value * vector) <= SAME * scale else None


def _solvable(matrix: Floats, vector: Floats) -> bool:
    """Whether some w has M w = v, by least squares: then wᵀ(the observations' score) estimates vᵀθ unbiased."""
    solution = np.linalg.lstsq(matrix, vector, rcond=TOLERANCE)[0]
    return bool(np.linalg.norm(matrix @ solution - vector) <= SAME * np.linalg.norm(vector))


def _number(value: float) -> str:
    return "infinite" if math.isinf(value) else f"{value:.6g}"
