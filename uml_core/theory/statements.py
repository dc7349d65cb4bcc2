"""Every statement of the theory: the paper's form, the form that holds, examples, and random cases to try both on.

The examples are small enough to check by hand. The survey tries a statement on random matrices of small whole numbers
and low rank, where ranges, kernels and ties are common, and counts how often each form is true.

    python -c "from uml_core.theory.statements import STATEMENTS; print(STATEMENTS[5].contrast[0])"
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from uml_core.theory import theorems
from uml_core.theory.information import Floats, Modality, kernel_of, range_of
from uml_core.theory.theorems import Check

Arguments = tuple[Any, ...]
ONE, EYE, ONES, E1, E2 = np.array([[1.0]]), np.eye(2), np.ones((2, 2)), np.array([1.0, 0.0]), np.array([0.0, 1.0])
SEES_E1 = np.diag([1.0, 0.0])
# Y sees v only mixed with a third direction that nobody else sees
MIXED_WORDS = "M_X = diag(1, 0, 0), M_Y = [[0, 0, 0], [0, 1, 1], [0, 1, 1]], v = (0, 1, 0)"
MIXED = np.diag([1.0, 0.0, 0.0]), np.outer([0.0, 1.0, 1.0], [0.0, 1.0, 1.0]), np.array([0.0, 1.0, 0.0])


@dataclass(frozen=True)
class Statement:
    """One statement in the paper's form and the one that holds, and what both are tried on: arguments of `check`.

    The paper's form holds in the example. The contrast is a counter-example to it where there is one, else a case
    outside its hypotheses, or None.
    """

    name: str
    paper: str
    corrected: str
    difference: str
    check: Callable[..., Check]
    draw: Callable[[np.random.Generator], Arguments]
    example: tuple[str, Arguments]
    contrast: tuple[str, Arguments] | None = None


@dataclass(frozen=True)
class Finding:
    """What came out for one statement: its examples, and how often it was true over random cases.

    Of the cases drawn, `met` meet the paper's hypotheses, and of these the paper's form is true in `paper_held`; the
    corrected form is true in `corrected_held` of those drawn.
    """

    name: str
    example: tuple[str, Check]
    contrast: tuple[str, Check] | None
    drawn: int
    met: int
    paper_held: int
    corrected_held: int

    @property
    def fails(self) -> bool:
        """Whether there is a counter-example: the paper's hypotheses are met and its conclusion is false."""
        return self.contrast is not None and self.contrast[1].paper_holds is False


def find(statement: Statement, seed: int, count: int) -> Finding:
    """Try a statement on its examples, and on `count` random cases."""
    rng, check = np.random.default_rng(seed), statement.check
    checks = [check(*statement.draw(rng)) for _ in range(count)]
    met = [each for each in checks if each.paper_holds is not None]
    (example, arguments), contrast = statement.example, statement.contrast
    return Finding(
        statement.name,
        (example, check(*arguments)),
        contrast and (contrast[0], check(*contrast[1])),
        drawn=count,
        met=len(met),
        paper_held=sum(each.paper_concludes for each in met),
        corrected_held=sum(each.corrected_holds for each in checks),
    )


def _whole(rng: np.random.Generator, *shape: int) -> Floats:
    return rng.integers(-2, 3, size=shape).astype(np.float64)


def _pair(rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Draw two informations (D, D) of rank 0 to D from whole numbers."""
    dim = int(rng.integers(2, 5))
    design_x, design_y = (_whole(rng, int(rng.integers(0, dim + 1)), dim) for _ in range(2))
    return design_x.T @ design_x, design_y.T @ design_y


def _along(rng: np.random.Generator) -> Arguments:
    """Draw M_X, M_Y and a direction where something happens: an axis, an eigenvector, in M_X's range or its kernel."""
    matrix_x, matrix_y = _pair(rng)
    dim = len(matrix_x)
    choices = [np.eye(dim)[rng.integers(dim)], np.linalg.eigh(matrix_x)[1][:, rng.integers(dim)]]
    for basis in (range_of(matrix_x), kernel_of(matrix_x)):
        if basis.size:
            choices.append(basis @ rng.standard_normal(basis.shape[1]))
    return matrix_x, matrix_y, choices[int(rng.integers(len(choices)))]


def _modalities(rng: np.random.Generator) -> Arguments:
    shared, ratio = int(rng.integers(1, 4)), float(rng.choice([0.1, 1.0, 10.0]))

    def modality(num_samples: int, noise_std: float) -> Modality:
        specific, observed = int(rng.integers(0, 4)), int(rng.integers(1, 4))
        of_shared, of_specific = (_whole(rng, num_samples, observed, width) for width in (shared, specific))
        return Modality(of_shared, of_specific, noise_std=noise_std)

    return modality(6, 1.0), modality(int(rng.integers(1, 4)), ratio)


def _common_eigenvector(rng: np.random.Generator) -> Arguments:
    dim = int(rng.integers(2, 5))
    basis = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    a, b = rng.integers(0, 4, size=(2, dim)).astype(np.float64)
    return (basis * a) @ basis.T, (basis * b) @ basis.T, basis[:, rng.integers(dim)]


def _ordered(rng: np.random.Generator) -> Arguments:
    smaller, gap = _pair(rng)
    return smaller, smaller + gap


def _several(rng: np.random.Generator) -> Arguments:
    shared, count = int(rng.integers(1, 4)), int(rng.integers(2, 5))
    designs = [_whole(rng, int(rng.integers(1, 4)), shared) for _ in range(count)]
    rows = sum(len(design) for design in designs)
    mixing = np.eye(rows) + (rng.random() < 0.5) * 0.3 * rng.standard_normal((rows, rows))
    return designs, mixing @ mixing.T


STATEMENTS = (
    Statement(
        "Theorem 1",
        "If some Bc_j has full column rank, (I_X + I_Y)cc ≻ (I_X)cc; equivalently, Var(joint)cc ≺ Var(X)cc.",
        "(I_X + I_Y)cc ≻ (I_X)cc if and only if M_Y ≻ 0. With S_X ≻ 0, Var(joint)cc = (S_X + S_Y)⁻¹ ⪯ S_X⁻¹ = "
        "Var(X)cc, strictly if and only if S_Y ≻ 0.",
        "The two halves are not equivalent: with unknown θx and θy the variance is the inverse of a Schur complement, "
        "not of a block. Where By can explain all that Bc does, the information rises and the variance does not move.",
        theorems.theorem_1,
        _modalities,
        ("Ac = Bc = I, no θx, no θy, σ = 1", (Modality(EYE), Modality(EYE))),
        (
            "Ac = [I; I], Ax = [I; −I], Bc = I, By = I, σ = 1",
            (Modality(np.vstack([EYE, EYE]), np.vstack([EYE, -EYE])), Modality(EYE, EYE)),
        ),
    ),
    Statement(
        "Joint least squares",
        "The joint estimator is ordinary least squares over all samples of X and Y; it beats X alone.",
        "Least squares weighted by 1/σ² is the maximum-likelihood estimator and never does worse than X alone.",
        "Unweighted, with σx ≠ σy, it is not the maximum-likelihood estimator: a noisy Y spoils a clean X.",
        theorems.joint_least_squares,
        _modalities,
        ("One X and one Y of one number, σx = σy = 0.1", (Modality(ONE, noise_std=0.1), Modality(ONE, noise_std=0.1))),
        (
            "One X and one Y of one number, σx = 0.1, σy = 10",
            (Modality(ONE, noise_std=0.1), Modality(ONE, noise_std=10)),
        ),
    ),
    Statement(
        "Theorem 2",
        "Y never raises the variance along v (1), and makes it finite where X is blind, v ∉ range(M_X), and Y is not, "
        "vᵀM_Y v > 0 (2).",
        "(1) as stated. (2) The variance becomes finite if and only if v ∈ range(M_X + M_Y).",
        "Seeing something along v is not enough: Y must not mix it with what nobody sees.",
        theorems.theorem_2,
        _along,
        ("M_X = diag(1, 0), M_Y = I, v = (0, 1)", (SEES_E1, EYE, E2)),
        (MIXED_WORDS, MIXED),
    ),
    Statement(
        "Corollary 1",
        "If M_X v = a v and M_Y v = b v with a > 0, the variance along v shrinks by the factor a / (a + b).",
        "As stated.",
        "",
        theorems.corollary_1,
        _common_eigenvector,
        ("M_X = diag(1, 2), M_Y = diag(3, 1), v = (1, 0)", (np.diag([1.0, 2.0]), np.diag([3.0, 1.0]), E1)),
    ),
    Statement(
        "Corollary 2",
        "If X is blind, M_X v = 0, and Y is not, vᵀM_Y v > 0, the variance along v falls from infinite to finite.",
        "With M_X v = 0, it becomes finite if and only if v ∈ range(M_X + M_Y).",
        "Inherited from Theorem 2 (2).",
        theorems.corollary_2,
        _along,
        ("M_X = diag(1, 0), M_Y = I, v = (0, 1)", (SEES_E1, EYE, E2)),
        (MIXED_WORDS, MIXED),
    ),
    Statement(
        "Corollary 3",
        "If v is an eigenvector of M_X, M_X v = a v with a > 0, and vᵀM_Y v > 0, the variance along v falls strictly.",
        "For v ∈ range(M_X): vᵀ(M_X + M_Y)†v ≤ vᵀM_X†v, strictly if and only if no w has M_X w = v and M_Y w = 0.",
        "Y may spend what it sees along v on a direction that X does not see.",
        theorems.corollary_3,
        _along,
        ("M_X = diag(1, 0), M_Y = I, v = (1, 0)", (SEES_E1, EYE, E1)),
        ("M_X = diag(1, 0), M_Y = [[1, 1], [1, 1]], v = (1, 0)", (SEES_E1, ONES, E1)),
    ),
    Statement(
        "Lemma 2",
        "If 0 ⪯ A ≺ B, then B† ≺ A†.",
        "If 0 ⪯ A ≺ B, then vᵀB†v < vᵀA†v for every v ≠ 0 in range(A), the complement of A's kernel.",
        "On the kernel A† is 0 and B† is not, so the order turns round there.",
        theorems.lemma_2,
        _ordered,
        ("A = I, B = 2 I", (EYE, 2 * EYE)),
        ("A = diag(1, 0), B = diag(2, 1)", (SEES_E1, np.diag([2.0, 1.0]))),
    ),
    Statement(
        "Theorem 3",
        "If range(M_Y) ⊄ range(M_X), there is a direction in which m samples of Y beat m more samples of X.",
        "As stated, for new X samples that see no more than the old ones. Constructive: v is the part of a vector of "
        "range(M_Y) that is orthogonal to range(M_X).",
        "",
        theorems.theorem_3,
        lambda rng: (*_pair(rng), int(rng.integers(1, 5))),
        ("M_X = diag(1, 0), M_Y = [[1, 1], [1, 1]]", (SEES_E1, ONES)),
    ),
    Statement(
        "K modalities",
        "Over K modalities, information adds up: I = Σ_k I_k.",
        "I = Σ_k I_k where the modalities' noise is independent given θ. In any case another modality never lowers it.",
        "Noise that modalities share is counted twice by the sum.",
        theorems.k_modalities,
        _several,
        ("Three modalities of one number, independent noise", ([ONE] * 3, np.eye(3))),
        ("Two modalities of one number, noise correlated by 0.9", ([ONE] * 2, np.array([[1.0, 0.9], [0.9, 1.0]]))),
    ),
)
