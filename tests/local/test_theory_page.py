"""The theory page from a small run: it says what the numbers say and needs no other file; bad flags are refused."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from pipelines.theory import __main__ as theory
from tests.local.test_bad_input import refused
from uml_core.reporting.theory import TheoryPage, build_theory_page, letters, number
from uml_core.theory.statements import STATEMENTS
from uml_core.theory.study import Request, TheoryResults, as_json, run_study


@pytest.fixture(scope="module")
def results() -> TheoryResults:
    return run_study(Request(trials=30, steps=2, cases=20))


@pytest.fixture(scope="module")
def page(results: TheoryResults) -> TheoryPage:
    return build_theory_page(results, wall_s=61.0, num_cpus=2)


def test_arms_are_compared_with_x_by_seed(results: TheoryResults) -> None:
    baseline, joint = results.arms[0], results.arms[1]
    assert baseline.early_difference.mean == 0
    assert joint.late_difference.mean == pytest.approx(joint.late.mean - baseline.late.mean)
    assert joint.late_difference.count == 3


def test_the_page_holds_every_statement_in_both_forms_and_every_figure(page: TheoryPage) -> None:
    for statement in STATEMENTS:
        assert f"<h3>{statement.name}</h3>" in page.html
        assert str(letters(statement.paper)) in page.html
        assert str(letters(statement.corrected)) in page.html
    assert page.html.count("data:image/svg+xml;base64,") == len(page.figures) == 2
    assert page.html.count("Counter-example.") == 6
    assert not re.search(r"(src|href)=\"(?!data:)", page.html)
    assert '<td class="n">25</td>' in page.html  # the unweighted variance of one X and one noisy Y
    assert "shortened to 2 steps" in page.html


def test_the_first_sentence_counts_what_fails(page: TheoryPage) -> None:
    first = page.words.splitlines()[0]
    assert "3 hold as the paper has them and 6 need a corrected form" in first
    assert "true in all 180 random cases" in first
    assert first in page.html


def test_figures_write_no_mathematical_markup(page: TheoryPage) -> None:
    for figure in page.figures:
        assert b"<svg" in figure.svg
        assert b"mathdefault" not in figure.svg
        assert figure.alternative


def test_results_are_plain_json(results: TheoryResults) -> None:
    tree = as_json(results)
    assert json.loads(json.dumps(tree, allow_nan=False)) == tree
    assert as_json([math.inf, math.nan, {"a": 1.5}]) == ["Infinity", "NaN", {"a": 1.5}]


def test_numbers_for_people() -> None:
    assert [number(value) for value in (25.0025, 1e-16, math.inf, math.nan, -1.0)] == ["25", "0", "infinite", "–", "−1"]
    assert letters("vᵀM_Y v < (I_X)cc") == "vᵀM<sub>Y</sub> v &lt; (I<sub>X</sub>)cc"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--trials", "0"], "--trials is 0; expected a whole number >= 1"),
        (["--trials", "x"], "--trials is x; expected a whole number >= 1"),
        (["--trials", "1.5"], "--trials is 1.5"),
        (["--seed", "-1"], "--seed is -1; expected a whole number >= 0"),
        (["--steps", "0"], "--steps is 0"),
        (["--output", "/proc/none"], "--output /proc/none cannot be written"),
        (["--output", "nonsense://bucket/theory"], "cannot be opened"),
    ],
)
def test_bad_flags_are_refused_before_anything_runs(
    capsys: pytest.CaptureFixture[str], arguments: list[str], part: str
) -> None:
    assert part in refused(capsys, theory.main, *arguments)


def test_an_output_that_is_a_file_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    assert "is a file; give a folder" in refused(capsys, theory.main, "--output", str(tmp_path / "taken"))
