"""The paper's statements (arXiv 2510.08492, section 3 and its appendix) in short, each beside the form that holds.

Letters: M_X = Σ AcᵀAc / σx² and M_Y = Σ BcᵀBc / σy² are the Fisher informations about θc with θx and θy known;
S_X and S_Y are their Schur complements, with θx and θy unknown. A ≺ B: B − A is positive definite.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


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
        numbers: the values the judgement rests on; variances may be infinite.
        words: the judgement in a sentence.
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
    THEOREM_1,
    JOINT_LEAST_SQUARES,
    THEOREM_2,
    COROLLARY_1,
    COROLLARY_2,
    COROLLARY_3,
    LEMMA_2,
    THEOREM_3,
    K_MODALITIES,
)
