"""For every statement an example where the paper's form holds, the counter-example where it fails, and a survey.

The examples are small enough to check by hand. The survey tries a statement on random matrices of small whole numbers
and low rank, where ranges, kernels and ties are common, and counts how often each form is true.

    python -c "from uml_core.theory.examples import findings; print(findings()[5].contrast.check.words)"
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from uml_core.theory import statements, theorems
from uml_core.theory.model import Modality
from uml_core.theory.model_theorems import check_joint_least_squares, check_k_modalities, check_theorem_1
from uml_core.theory.statements import Statement, TheoremCheck
from uml_core.theory.subspaces import Floats, spectrum

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
    """Return every statement with its example and what goes against it, worked out now."""
    found = [*_about_models(), *_about_directions(), *_about_matrices()]
    return tuple(sorted(found, key=lambda finding: statements.STATEMENTS.index(finding.statement)))


def _about_models() -> Iterator[Finding]:
    eye, one = np.eye(2), np.array([[1.0]])
    clean, noisy = Modality.of(one, noise_std=0.1), Modality.of(one, noise_std=10.0)
    seen, hidden = Modality.of(np.vstack([eye, eye]), np.vstack([eye, -eye])), Modality.of(eye, eye)
    yield Finding(
        statements.THEOREM_1,
        Example("Ac = Bc = I, no θx, no θy, σ = 1", check_theorem_1(Modality.of(eye), Modality.of(eye))),
        Example("Ac = [I; I], Ax = [I; −I], Bc = I, By = I, σ = 1", check_theorem_1(seen, hidden)),
    )
    yield Finding(
        statements.JOINT_LEAST_SQUARES,
        Example("One X and one Y of one number, σx = σy = 0.1", check_joint_least_squares(clean, clean)),
        Example("One X and one Y of one number, σx = 0.1, σy = 10", check_joint_least_squares(clean, noisy)),
    )
    correlated = np.array([[1.0, 0.9], [0.9, 1.0]])
    yield Finding(
        statements.K_MODALITIES,
        Example("Three modalities of one number, independent noise", check_k_modalities([one] * 3, np.eye(3))),
        Example("Two modalities of one number, noise correlated by 0.9", check_k_modalities([one] * 2, correlated)),
    )


def _about_directions() -> Iterator[Finding]:
    first, second, eye = np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.eye(2)
    blind = "M_X = diag(1, 0), M_Y = I, v = (0, 1)"
    # Y sees v only mixed with a third direction that nobody else sees
    mixed = "M_X = diag(1, 0, 0), M_Y = [[0, 0, 0], [0, 1, 1], [0, 1, 1]], v = (0, 1, 0)"
    mixed_x, mixed_y = np.diag([1.0, 0.0, 0.0]), np.outer([0.0, 1.0, 1.0], [0.0, 1.0, 1.0])
    for statement, check in (
        (statements.THEOREM_2, theorems.check_theorem_2),
        (statements.COROLLARY_2, theorems.check_corollary_2),
    ):
        yield Finding(
            statement,
            Example(blind, check(np.diag(first), eye, second)),
            Example(mixed, check(mixed_x, mixed_y, np.array([0.0, 1.0, 0.0]))),
        )
    common = theorems.check_corollary_1(np.diag([1.0, 2.0]), np.diag([3.0, 1.0]), first)
    yield Finding(statements.COROLLARY_1, Example("M_X = diag(1, 2), M_Y = diag(3, 1), v = (1, 0)", common), None)
    yield Finding(
        statements.COROLLARY_3,
        Example("M_X = diag(1, 0), M_Y = I, v = (1, 0)", theorems.check_corollary_3(np.diag(first), eye, first)),
        Example(
            "M_X = diag(1, 0), M_Y = [[1, 1], [1, 1]], v = (1, 0)",
            theorems.check_corollary_3(np.diag(first), np.ones((2, 2)), first),
        ),
    )


def _about_matrices() -> Iterator[Finding]:
    first, eye = np.diag([1.0, 0.0]), np.eye(2)
    yield Finding(
        statements.LEMMA_2,
        Example("A = I, B = 2 I", theorems.check_lemma_2(eye, 2 * eye)),
        Example("A = diag(1, 0), B = diag(2, 1)", theorems.check_lemma_2(first, np.diag([2.0, 1.0]))),
    )
    better = theorems.check_theorem_3(first, np.ones((2, 2)))
    yield Finding(statements.THEOREM_3, Example("M_X = diag(1, 0), M_Y = [[1, 1], [1, 1]]", better), None)


def survey(name: str, *, seed: int, count: int) -> Survey:
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
    if parts.rank:
        choices.append(parts.range_basis @ rng.standard_normal(parts.rank))
    if parts.rank < dim:
        choices.append(parts.kernel_basis @ rng.standard_normal(dim - parts.rank))
    chosen: Floats = choices[int(rng.integers(len(choices)))]
    return chosen


def _modality(rng: np.random.Generator, shared: int, *, num_samples: int, noise_std: float) -> Modality:
    specific, observed = int(rng.integers(0, 4)), int(rng.integers(1, 4))
    return Modality(
        _whole(rng, num_samples * observed, shared).reshape(num_samples, observed, shared),
        _whole(rng, num_samples * observed, specific).reshape(num_samples, observed, specific),
        noise_std,
    )


def _modalities(rng: np.random.Generator) -> tuple[Modality, Modality]:
    shared, ratio = int(rng.integers(1, 4)), float(rng.choice([0.1, 1.0, 10.0]))
    return (
        _modality(rng, shared, num_samples=6, noise_std=1.0),
        _modality(rng, shared, num_samples=int(rng.integers(1, 4)), noise_std=ratio),
    )


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
    return check_k_modalities(designs, mixing @ mixing.T)


DRAWS: Mapping[str, Draw] = {
    statements.THEOREM_1.name: lambda rng: check_theorem_1(*_modalities(rng)),
    statements.JOINT_LEAST_SQUARES.name: lambda rng: check_joint_least_squares(*_modalities(rng)),
    statements.THEOREM_2.name: _along(theorems.check_theorem_2),
    statements.COROLLARY_1.name: _common_eigenvector,
    statements.COROLLARY_2.name: _along(theorems.check_corollary_2),
    statements.COROLLARY_3.name: _along(theorems.check_corollary_3),
    statements.LEMMA_2.name: _ordered,
    statements.THEOREM_3.name: lambda rng: theorems.check_theorem_3(*_pair(rng), int(rng.integers(1, 5))),
    statements.K_MODALITIES.name: _several,
}
