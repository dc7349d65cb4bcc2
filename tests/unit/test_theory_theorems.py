"""The paper's statements: their counter-examples by hand, and the corrected forms on random matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest

from uml_core.theory import Modality
from uml_core.theory.examples import DRAWS, Finding, findings, survey
from uml_core.theory.theorems import (
    STATEMENTS,
    check_corollary_1,
    check_corollary_3,
    check_k_modalities,
    check_theorem_1,
    check_theorem_2,
    check_theorem_3,
)

FINDINGS = {finding.statement.name: finding for finding in findings()}
FAILS = {"Theorem 1", "Joint least squares", "Theorem 2", "Corollary 2", "Corollary 3", "Lemma 2"}


def numbers(name: str) -> dict[str, float]:
    contrast = FINDINGS[name].contrast
    assert contrast is not None
    return dict(contrast.check.numbers)


@pytest.mark.parametrize("finding", FINDINGS.values(), ids=list(FINDINGS))
def test_every_example_and_counter_example_is_one(finding: Finding) -> None:
    assert finding.example.check.paper_holds is True
    assert finding.example.check.corrected_holds
    assert all(finding.example.check.hypotheses.values())
    is_counter_example = finding.contrast is not None and finding.contrast.check.is_counter_example
    assert is_counter_example == (finding.statement.name in FAILS)
    if finding.contrast is not None:
        assert finding.contrast.check.corrected_holds
        assert all(finding.contrast.check.hypotheses.values()) == is_counter_example


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


def test_every_statement_has_a_survey() -> None:
    assert list(DRAWS) == [statement.name for statement in STATEMENTS]


@pytest.mark.parametrize("name", DRAWS)
def test_corrected_forms_hold_on_random_matrices_and_the_papers_fail_where_we_say(name: str) -> None:
    found = survey(name, seed=5, count=150)
    assert found.corrected_held == found.drawn == 150
    assert found.met > 10
    assert (found.paper_held < found.met) == (name in FAILS)


def test_hypotheses_that_are_not_met_are_said() -> None:
    check = check_corollary_3(np.diag([1.0, 2.0]), np.eye(2), [1.0, 1.0])  # no eigenvector
    assert check.paper_holds is None
    assert not check.is_counter_example
    assert not check.hypotheses["M_X v = a v with a > 0"]
    assert check_theorem_3(np.eye(2), np.diag([1.0, 0.0])).paper_holds is None
    assert check_theorem_2(np.diag([1.0, 0.0]), np.diag([1.0, 0.0]), [0.0, 1.0]).paper_holds is None


def test_common_eigenvectors_shrink_by_a_over_a_plus_b() -> None:
    check = check_corollary_1(np.diag([2.0, 1.0]), np.diag([6.0, 1.0]), [1.0, 0.0])
    assert check.numbers["a / (a + b)"] == 0.25
    assert check.numbers["variance along v, X and Y"] == pytest.approx(0.125)


@pytest.mark.parametrize("num_samples", [1, 7])
def test_theorem_3_for_any_number_of_samples(num_samples: int) -> None:
    check = check_theorem_3(np.diag([1.0, 0.0]), np.ones((2, 2)), num_samples)
    assert check.paper_holds
    assert check.numbers[f"variance along v, {num_samples} more X"] == math.inf
    # var(y − x) of one x and the mean of m ys
    assert check.numbers[f"variance along v, {num_samples} Y"] == pytest.approx(1 + 1 / num_samples)


def test_theorem_1_without_nuisance_is_as_the_paper_has_it() -> None:
    x, y = Modality.from_designs(np.eye(2)), Modality.from_designs(2 * np.eye(2))
    check = check_theorem_1(x, y)
    assert check.paper_holds
    assert check.numbers["total variance, X and Y"] == pytest.approx(2 / 5)


def test_a_third_modality_adds_its_information() -> None:
    designs = [np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]), np.array([[1.0, 1.0]])]
    check = check_k_modalities(designs, np.eye(3))
    assert check.paper_holds
    assert check.numbers["trace of the information"] == pytest.approx(4.0)
