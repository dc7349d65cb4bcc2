"""The theory page: one HTML file that needs nothing else, for a reader of the paper, and its figures.

In: `TheoryResults`. Out: a `TheoryPage`, whose first sentence says how many statements hold as the paper has them.

    page = build_theory_page(results, wall_s=170.0, num_cpus=2)
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

from uml_core.evaluation.statistics import Spread
from uml_core.figures.drawing import ReportFigure, drawn
from uml_core.reporting.page import environment
from uml_core.reporting.theory import theory_figures
from uml_core.theory.autoencoder import NUM_SAMPLES
from uml_core.theory.examples import Finding, Survey
from uml_core.theory.monte_carlo import CaseResult
from uml_core.theory.study import ArmSummary, TheoryResults

SUBSCRIPT = re.compile(r"(?<=\w)_(\w)")
NUMBER_WORDS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class TheoryPage:
    """The page, what it says in short, and its figures."""

    html: str
    words: str
    figures: tuple[ReportFigure, ...]


@dataclass(frozen=True)
class RankRow:
    """Cases of the same ranks together: how far simulation is from either formula, as ratios of total variances."""

    rank_x: str
    rank_y: str
    cases: int
    corrected: tuple[float, float]
    paper: tuple[float, float]
    unweighted: float


def build_theory_page(results: TheoryResults, *, wall_s: float, num_cpus: int) -> TheoryPage:
    """Return the page on a run's results; `wall_s` and `num_cpus` say what it took."""
    figures = _figures(results)
    sentences = (statements_sentence(results), simulation_sentence(results), study_sentence(results))
    templates = environment()
    templates.filters.update(letters=letters, number=number, statistic=statistic, signed=signed, change=change)
    html = templates.get_template("theory.html.j2").render(
        results=results,
        sentences=sentences,
        figures={figure.name: figure for figure in figures},
        sections=[(finding, _survey_of(results, finding)) for finding in results.findings],
        rank_rows=rank_rows(results.cases),
        exchange_words=exchange_sentence(results),
        baseline=results.arms[0],
        wall_s=wall_s,
        num_cpus=num_cpus,
    )
    return TheoryPage(html, "\n".join(sentences), figures)


def statements_sentence(results: TheoryResults) -> str:
    """Say how many statements hold as the paper has them, and which need another form."""
    failing = [f.statement.name for f in results.findings if f.contrast and f.contrast.check.is_counter_example]
    held = len(results.findings) - len(failing)
    corrected = all(survey.corrected_held == survey.drawn for survey in results.surveys)
    cases = sum(survey.drawn for survey in results.surveys)
    return (
        f"Of {len(results.findings)} statements, {NUMBER_WORDS[held]} hold as the paper has them and "
        f"{NUMBER_WORDS[len(failing)]} need a corrected form ({', '.join(failing)}); the corrected forms were "
        f"{'true in all' if corrected else 'NOT true in all'} {cases:,} random cases."
    )


def simulation_sentence(results: TheoryResults) -> str:
    """Say whether the simulated estimators agree with the closed forms."""
    found = results.agreement
    verb = "agree" if found.agrees else "DISAGREE"
    return (
        f"Simulated covariances {verb} with the corrected closed forms: over {found.entries:,} entries of "
        f"{len(results.cases)} models the largest deviation is {found.largest_z:.1f} standard errors, where chance "
        f"allows {found.limit:.1f}."
    )


def study_sentence(results: TheoryResults) -> str:
    """Say what X+Y does for X in the Gaussian study, early and at the end, and what a Y without structure does."""
    arms = {arm.arm.name: arm for arm in results.arms}
    base, joint, permuted = arms["X"], arms["X+Y"], arms["X+permuted Y"]
    if results.request.num_steps <= results.early_step:
        return f"The Gaussian study ran for {results.request.num_steps:,} steps only, too few to say anything."
    return (
        f"In the Gaussian study X+Y changes the error on X by {change(joint.early.mean / base.early.mean - 1)} at step "
        f"{results.early_step:,} and by {change(joint.late.mean / base.late.mean - 1)} at step "
        f"{results.request.num_steps:,}; a Y without any structure does "
        f"{change(permuted.early.mean / base.early.mean - 1)} and {change(permuted.late.mean / base.late.mean - 1)}."
    )


def exchange_sentence(results: TheoryResults) -> str:
    """Say what the exchange rates come to for N samples."""
    gains = [result.x_only / result.half_and_half for result in results.exchange]
    rates = [rate for result in results.exchange for rate in result.by_direction]
    traces = [result.by_trace for result in results.exchange]
    return (
        f"Along a shared dimension one sample of Y replaces {min(rates):,.0f} to {max(rates):,.0f} of X; by trace it "
        f"would be {min(traces):.1f} to {max(traces):.1f}, for the trace is ruled by the dimension that X sees well. "
        f"With {NUM_SAMPLES:,} samples, half of them Y, the total variance of θc is {min(gains):,.0f} to "
        f"{max(gains):,.0f} times smaller than with X alone."
    )


def rank_rows(cases: Sequence[CaseResult]) -> list[RankRow]:
    """Return one row for each pair of ranks."""
    groups: dict[tuple[str, str], list[CaseResult]] = {}
    for case in cases:
        groups.setdefault((case.case.rank_x, case.case.rank_y), []).append(case)
    return [
        RankRow(
            rank_x,
            rank_y,
            len(group),
            _range([case.empirical / case.predicted for case in group]),
            _range([case.empirical / case.paper for case in group]),
            max(case.unweighted / case.empirical for case in group),
        )
        for (rank_x, rank_y), group in groups.items()
    ]


def letters(text: str) -> Markup:
    """Return mathematics in words as HTML: what follows an underscore is a subscript."""
    return Markup(SUBSCRIPT.sub(r"<sub>\1</sub>", str(escape(text))))


def number(value: float | None) -> str:
    """Return a number with four digits; "infinite" and a dash for what is none."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "infinite"
    plain = 0.0 if abs(value) < 1e-12 else value
    if 1e-6 <= abs(plain) < 1e7:
        text = np.format_float_positional(plain, precision=4, fractional=False, trim="-")
    else:
        text = f"{plain:.4g}"
    return text.replace("-", "−")


def statistic(error: Spread) -> str:
    """Return an error over seeds as mean ± standard deviation."""
    return f"{error.mean:.2f}" if math.isnan(error.std) else f"{error.mean:.2f}\u00a0±\u00a0{error.std:.2f}"


def signed(value: float) -> str:
    """Return a difference of errors with its sign."""
    text = f"{value:+.2f}".replace("-", "−")
    return "–" if math.isnan(value) else "0.00" if text in ("+0.00", "−0.00") else text


def change(fraction: float) -> str:
    """Return a relative change in percent with its sign."""
    text = f"{100 * fraction:+.1f} %"
    return "0.0 %" if text in ("+0.0 %", "-0.0 %") else text.replace("-", "−")


def _range(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _survey_of(results: TheoryResults, finding: Finding) -> Survey:
    return next(survey for survey in results.surveys if survey.name == finding.statement.name)


def _figures(results: TheoryResults) -> tuple[ReportFigure, ...]:
    agreement, noisiest = results.agreement, results.noise_sweep[-1]
    means = {arm.arm.name: arm for arm in results.arms}
    return (
        drawn(
            "schur_against_block",
            theory_figures.schur_against_block(results),
            "A mark is a model: total variance of the weighted estimate in simulation, over what either formula "
            "predicts. On the line, the formula is right; above it, it promises too much.",
            "Scatter plot. Simulated over predicted total variance: Schur complement "
            f"{_span([c.empirical / c.predicted for c in results.cases])}, shared block "
            f"{_span([c.empirical / c.paper for c in results.cases])}; {agreement.entries} entries tested.",
        ),
        drawn(
            "noise_ratio",
            theory_figures.noise_ratio(results),
            "Lines are closed forms, marks are simulated. Unweighted, the joint estimate is worse than X alone as soon "
            "as σy² > 3 σx².",
            "Line chart of variance against noise ratio. At the largest ratio: X alone "
            f"{number(noisiest.x_alone[0])}, unweighted {number(noisiest.unweighted[0])}, weighted "
            f"{number(noisiest.weighted[0])}.",
        ),
        drawn(
            "exchange_rates",
            theory_figures.exchange_rates(results),
            "How many samples of X one sample of Y replaces, in the world of the paper's figure 3, projections known. "
            "One number for all directions, the trace, hides what Y is for.",
            f"Dot plot of exchange rates. {exchange_sentence(results)}",
        ),
        drawn(
            "autoencoder_curves",
            theory_figures.autoencoder_curves(results),
            "Validation error on X while training, mean over seeds. Lines across are closed forms: where the best "
            "linear autoencoder of the same bottleneck ends.",
            f"Line chart of validation error. At the end: {_means(means, late=True)}.",
        ),
        drawn(
            "autoencoder_arms",
            theory_figures.autoencoder_arms(results),
            "The same early and at the end. A mark is a seed, the bar their mean.",
            f"Dot plot of validation error. Early: {_means(means, late=False)}. Late: {_means(means, late=True)}.",
        ),
    )


def _means(arms: Mapping[str, ArmSummary], *, late: bool) -> str:
    return "; ".join(f"{name} {(arm.late if late else arm.early).mean:.2f}" for name, arm in arms.items())


def _span(values: Sequence[float]) -> str:
    return f"{np.min(values):.2f} to {np.max(values):.2f}"
