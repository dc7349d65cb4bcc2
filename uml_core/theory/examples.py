"""For every statement an example where the paper's form holds, the counter-example where it fails, and a survey.

The examples are small enough to check by hand. The survey tries a statement on random matrices of small whole numbers
and low rank, where ranges, kernels and ties are common, and counts how often each form is true.

    python -c "from uml_core.theory.examples import findings; print(findings()[5].contrast.check.words)"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from uml_core.theory import theorems
from uml_core.theory.information import Floats, Modality, spectrum
from uml_core.theory.theorems import Statement, TheoremCheck

Draw = Callable[[np.random.Generator], TheoremCheck]


@dataclass(frozen=True)
class Example:
    """Matrices in words, and what the check says of them."""

    given: str
    check: TheoremCheck


@dataclass(frozen=True)
class Finding:
    """One statement, an example that agrees with the paper, and what goes against it.

    `contrast` is a counter-example to the paper's form where there is one, else a case outside its hypotheses, or None.
    """

    statement: Statement
    example: Example
    contrast: Example | None


@dataclass(frozen=True)
class Survey:
    """How often a statement was true over random matrices.

    Attributes:
        drawn: matrices tried.
        met: of them, those that meet the paper's hypotheses.
        paper_held: of those met, those where the paper's conclusion is true.
        corrected_held: of those drawn, those where the corrected form is true.
    """

    name: str
    drawn: int
    met: int
    paper_held: int
    corrected_held: int


def findings() -> tuple[Finding, ...]:
    """Every statement with its example and what goes against it, worked out now."""
    one, eye, ones = np.array([[1.0]]), np.eye(2), np.ones((2, 2))
    first, second = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    seen_once = np.diag(first)
    design = Modality.from_designs
    clean, noisy = design(one, noise_std=0.1), design(one, noise_std=10.0)
    seen, hidden = design(np.vstack([eye, eye]), np.vstack([eye, -eye])), design(eye, eye)
    blind = "M_X = diag(1, 0), M_Y = I, v = (0, 1)"
    # Y sees v only mixed with a third direction that nobody else sees
    mixed = "M_X = diag(1, 0, 0), M_Y = [[0, 0, 0], [0, 1, 1], [0, 1, 1]], v = (0, 1, 0)"
    mixture = np.diag([1.0, 0.0, 0.0]), np.outer([0.0, 1.0, 1.0], [0.0, 1.0, 1.0]), np.array([0.0, 1.0, 0.0])
    check_1, check_squares, check_k = (
        theorems.check_theorem_1,
        theorems.check_joint_least_squares,
        theorems.check_k_modalities,
    )
    found = (
        (
            Example("Ac = Bc = I, no θx, no θy, σ = 1", check_1(design(eye), design(eye))),
            Example("Ac = [I; I], Ax = [I; −I], Bc = I, By = I, σ = 1", check_1(seen, hidden)),
        ),
        (
            Example("One X and one Y of one number, σx = σy = 0.1", check_squares(clean, clean)),
            Example("One X and one Y of one number, σx = 0.1, σy = 10", check_squares(clean, noisy)),
        ),
        (
            Example(blind, theorems.check_theorem_2(seen_once, eye, second)),
            Example(mixed, theorems.check_theorem_2(*mixture)),
        ),
        (
            Example(
                "M_X = diag(1, 2), M_Y = diag(3, 1), v = (1, 0)",
                theorems.check_corollary_1(np.diag([1.0, 2.0]), np.diag([3.0, 1.0]), first),
            ),
            None,
        ),
        (
            Example(blind, theorems.check_corollary_2(seen_once, eye, second)),
            Example(mixed, theorems.check_corollary_2(*mixture)),
        ),
        (
            Example("M_X = diag(1, 0), M_Y = I, v = (1, 0)", theorems.check_corollary_3(seen_once, eye, first)),
            Example(
                "M_X = diag(1, 0), M_Y = [[1, 1], [1, 1]], v = (1, 0)",
                theorems.check_corollary_3(seen_once, ones, first),
            ),
        ),
        (
            Example("A = I, B = 2 I", theorems.check_lemma_2(eye, 2 * eye)),
            Example("A = diag(1, 0), B = diag(2, 1)", theorems.check_lemma_2(seen_once, np.diag([2.0, 1.0]))),
        ),
        (Example("M_X = diag(1, 0), M_Y = [[1, 1], [1, 1]]", theorems.check_theorem_3(seen_once, ones)), None),
        (
            Example("Three modalities of one number, independent noise", check_k([one] * 3, np.eye(3))),
            Example(
                "Two modalities of one number, noise correlated by 0.9",
                check_k([one] * 2, np.array([[1.0, 0.9], [0.9, 1.0]])),
            ),
        ),
    )
    return tuple(Finding(example.check.statement, example, contrast) for example, contrast in found)


def survey(name: str, seed: int, count: int) -> Survey:
    """Try one statement on `count` random cases. `name` is a `Statement`'s."""
    rng = np.random.default_rng(seed)
    checks = [DRAWS[name](rng) for _ in range(count)]
    met = [check for check in checks if check.paper_holds is not None]
    return Survey(
        name,
        count,
        len(met),
        sum(check.paper_holds is True for check in met),
        sum(check.corrected_holds for check in checks),
    )


def _whole(rng: np.random.Generator, rows: int, columns: int) -> Floats:
    return rng.integers(-2, 3, size=(rows, columns)).astype(np.float64)


def _gram(rng: np.random.Generator, dim: int) -> Floats:
    """Draw an information (D, D) of rank 0 to D from whole numbers."""
    design = _whole(rng, int(rng.integers(0, dim + 1)), dim)
    information: Floats = design.T @ design
    return information


def _pair(rng: np.random.Generator) -> tuple[Floats, Floats]:
    dim = int(rng.integers(2, 5))
    return _gram(rng, dim), _gram(rng, dim)


def _direction(rng: np.random.Generator, matrix: Floats) -> Floats:
    """Draw a direction where something happens: an axis, an eigenvector, one in the range, one in the kernel."""
    dim, parts = len(matrix), spectrum(matrix)
    choices = [np.eye(dim)[rng.integers(dim)], np.linalg.eigh(matrix)[1][:, rng.integers(dim)]]
    for basis in (parts.range_basis, parts.kernel_basis):
        if basis.size:
            choices.append(basis @ rng.standard_normal(basis.shape[1]))
    chosen: Floats = choices[int(rng.integers(len(choices)))]
    return chosen


def _modalities(rng: np.random.Generator) -> tuple[Modality, Modality]:
    shared, ratio = int(rng.integers(1, 4)), float(rng.choice([0.1, 1.0, 10.0]))

    def modality(num_samples: int, noise_std: float) -> Modality:
        specific, observed = int(rng.integers(0, 4)), int(rng.integers(1, 4))
        of_shared, of_specific = (
            _whole(rng, num_samples * observed, width).reshape(num_samples, observed, width)
            for width in (shared, specific)
        )
        return Modality(of_shared, of_specific, noise_std)

    return modality(6, 1.0), modality(int(rng.integers(1, 4)), ratio)


def _along(check: Callable[[Floats, Floats, Floats], TheoremCheck]) -> Draw:
    def draw(rng: np.random.Generator) -> TheoremCheck:
        matrix_x, matrix_y = _pair(rng)
        return check(matrix_x, matrix_y, _direction(rng, matrix_x))

    return draw


def _common_eigenvector(rng: np.random.Generator) -> TheoremCheck:
    dim = int(rng.integers(2, 5))
    basis = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    a, b = rng.integers(0, 4, size=(2, dim)).astype(np.float64)
    return theorems.check_corollary_1((basis * a) @ basis.T, (basis * b) @ basis.T, basis[:, rng.integers(dim)])


def _ordered(rng: np.random.Generator) -> TheoremCheck:
    smaller, gap = _pair(rng)
    return theorems.check_lemma_2(smaller, smaller + gap)


def _several(rng: np.random.Generator) -> TheoremCheck:
    shared, count = int(rng.integers(1, 4)), int(rng.integers(2, 5))
    designs = [_whole(rng, int(rng.integers(1, 4)), shared) for _ in range(count)]
    rows = sum(len(design) for design in designs)
    mixing = np.eye(rows) + (rng.random() < 0.5) * 0.3 * rng.standard_normal((rows, rows))
    return theorems.check_k_modalities(designs, mixing @ mixing.T)


DRAWS: Mapping[str, Draw] = {
    theorems.THEOREM_1.name: lambda rng: theorems.check_theorem_1(*_modalities(rng)),
    theorems.JOINT_LEAST_SQUARES.name: lambda rng: theorems.check_joint_least_squares(*_modalities(rng)),
    theorems.THEOREM_2.name: _along(theorems.check_theorem_2),
    theorems.COROLLARY_1.name: _common_eigenvector,
    theorems.COROLLARY_2.name: _along(theorems.check_corollary_2),
    theorems.COROLLARY_3.name: _along(theorems.check_corollary_3),
    theorems.LEMMA_2.name: _ordered,
    theorems.THEOREM_3.name: lambda rng: theorems.check_theorem_3(*_pair(rng), int(rng.integers(1, 5))),
    theorems.K_MODALITIES.name: _several,
}
