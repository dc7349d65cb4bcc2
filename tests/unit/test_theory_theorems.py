"""The paper's statements: their counter-examples by hand, and the corrected forms on random matrices."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest

from uml_core.theory import Modality, theorems
from uml_core.theory.statements import STATEMENTS, Statement, find

FAILS = {"Theorem 1", "Joint least squares", "Theorem 2", "Corollary 2", "Corollary 3", "Lemma 2"}


def numbers(name: str) -> Mapping[str, float]:
    contrast = next(statement.contrast for statement in STATEMENTS if statement.name == name)
    assert contrast is not None
    return next(statement for statement in STATEMENTS if statement.name == name).check(*contrast[1]).numbers


@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda statement: statement.name)
def test_corrected_forms_hold_on_random_matrices_and_the_papers_fail_where_we_say(statement: Statement) -> None:
    found = find(statement, seed=5, count=150)
    assert found.example[1].paper_holds is True
    assert found.example[1].corrected_holds
    assert found.contrast is None or found.contrast[1].corrected_holds
    assert found.fails == (found.name in FAILS)
    assert found.corrected_held == found.drawn == 150
    assert found.met > 10
    assert (found.paper_held < found.met) == (found.name in FAILS)


def test_the_counter_examples_in_numbers() -> None:
    assert numbers("Theorem 1")["total variance, X"] == pytest.approx(1.0)
    assert numbers("Theorem 1")["total variance, X and Y"] == pytest.approx(1.0)
    assert numbers("Theorem 1")["the paper's variance, X and Y"] == pytest.approx(2 / 3)
    assert numbers("Joint least squares")["total variance, unweighted"] == pytest.approx(25.0025)
    assert numbers("Joint least squares")["total variance, weighted"] == pytest.approx(0.009999, rel=1e-6)
    assert numbers("Corollary 3")["variance along v, X and Y"] == pytest.approx(1.0)
    assert numbers("Corollary 2")["variance along v, X and Y"] == math.inf
    assert numbers("Lemma 2")["smallest eigenvalue of A† − B†"] == pytest.approx(-1.0)
    assert numbers("K modalities")["trace of the information"] == pytest.approx(2 / 1.9)


def test_hypotheses_that_are_not_met_are_said() -> None:
    check = theorems.corollary_3(np.diag([1.0, 2.0]), np.eye(2), [1.0, 1.0])  # no eigenvector
    assert check.paper_holds is None
    assert not check.hypotheses["M_X v = a v with a > 0"]
    assert theorems.theorem_3(np.eye(2), np.diag([1.0, 0.0])).paper_holds is None
    assert theorems.theorem_2(np.diag([1.0, 0.0]), np.diag([1.0, 0.0]), [0.0, 1.0]).paper_holds is None


def test_common_eigenvectors_shrink_by_a_over_a_plus_b() -> None:
    check = theorems.corollary_1(np.diag([2.0, 1.0]), np.diag([6.0, 1.0]), [1.0, 0.0])
    assert check.numbers["a / (a + b)"] == 0.25
    assert check.numbers["variance along v, X and Y"] == pytest.approx(0.125)


@pytest.mark.parametrize("num_samples", [1, 7])
def test_theorem_3_for_any_number_of_samples(num_samples: int) -> None:
    check = theorems.theorem_3(np.diag([1.0, 0.0]), np.ones((2, 2)), num_samples)
    assert check.paper_holds
    assert check.numbers[f"variance along v, {num_samples} more X"] == math.inf
    # var(y − x) of one x and the mean of m ys
    assert check.numbers[f"variance along v, {num_samples} Y"] == pytest.approx(1 + 1 / num_samples)


def test_theorem_1_without_nuisance_is_as_the_paper_has_it() -> None:
    check = theorems.theorem_1(Modality(np.eye(2)), Modality(2 * np.eye(2)))
    assert check.paper_holds
    assert check.numbers["total variance, X and Y"] == pytest.approx(2 / 5)


def test_a_third_modality_adds_its_information() -> None:
    designs = [np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]), np.array([[1.0, 1.0]])]
    check = theorems.k_modalities(designs, np.eye(3))
    assert check.paper_holds
    assert check.numbers["trace of the information"] == pytest.approx(4.0)
