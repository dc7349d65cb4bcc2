"""The theory page: one HTML file that needs nothing else, for a reader of the paper, and its figures.

In: `TheoryResults`. Out: a `TheoryPage`, whose first sentence says how many statements hold as the paper has them.
Total variance is the trace of a covariance, in units of θ²; validation error is a mean squared error per number.

    page = build_theory_page(results, wall_s=170.0, num_cpus=2)
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from uml_core.evaluation.statistics import Spread
from uml_core.figures.drawing import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    ReportFigure,
    drawn,
    house_style,
    stacked_panels,
)
from uml_core.reporting.figures import Look
from uml_core.reporting.page import environment
from uml_core.theory.gaussian_study import NUM_SAMPLES
from uml_core.theory.monte_carlo import CaseResult
from uml_core.theory.study import TheoryResults

SUBSCRIPT = re.compile(r"(?<=\w)_(\w)")
NUMBER_WORDS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
ERROR = "validation error on X"
FAINT = {"alpha": 0.75, "markeredgecolor": "white", "markeredgewidth": 0.5}  # of marks that lie on one another
ARM_LOOKS = {
    "X": Look(BLACK, "s", "-"),
    "X+Y": Look(BLUE, "o", "-"),
    "half X": Look(GREY, "X", "--"),
    "X, double batch": Look(GREEN, "P", "-."),
    "X+permuted Y": Look(VERMILION, "^", "--"),
    "X+noise": Look(ORANGE, "v", ":"),
}
SEED_LOOKS = (Look(BLUE, "o", ""), Look(VERMILION, "^", ""), Look(GREEN, "s", ""))


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
    """The page on a run's results; `wall_s` and `num_cpus` say what it took."""
    figures = _figures(results)
    sentences = (statements_sentence(results), simulation_sentence(results), study_sentence(results))
    templates = environment()
    templates.filters.update(letters=letters, number=number, statistic=statistic, signed=signed, change=change)
    html = templates.get_template("theory.html.j2").render(
        results=results,
        sentences=sentences,
        figures={figure.name: figure for figure in figures},
        # both in the order of the statements
        sections=list(zip(results.findings, results.surveys, strict=True)),
        rank_rows=rank_rows(results.cases),
        exchange_words=exchange_sentence(results),
        baseline=results.arms[0],
        wall_s=wall_s,
        num_cpus=num_cpus,
    )
    return TheoryPage(html, "\n".join(sentences), figures)


def statements_sentence(results: TheoryResults) -> str:
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
    groups: dict[tuple[str, str], list[CaseResult]] = {}
    for case in cases:
        groups.setdefault((case.case.rank_x, case.case.rank_y), []).append(case)
    return [
        RankRow(
            rank_x,
            rank_y,
            len(group),
            _ends([case.empirical / case.predicted for case in group]),
            _ends([case.empirical / case.paper for case in group]),
            max(case.unweighted / case.empirical for case in group),
        )
        for (rank_x, rank_y), group in groups.items()
    ]


def letters(text: str) -> Markup:
    """Mathematics in words as HTML: what follows an underscore is a subscript."""
    return Markup(SUBSCRIPT.sub(r"<sub>\1</sub>", str(escape(text))))


def number(value: float | None) -> str:
    """A number with four digits; "infinite" and a dash for what is none."""
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
    return f"{error.mean:.2f}" if math.isnan(error.std) else f"{error.mean:.2f}\u00a0±\u00a0{error.std:.2f}"


def signed(value: float) -> str:
    text = f"{value:+.2f}".replace("-", "−")
    return "–" if math.isnan(value) else "0.00" if text in ("+0.00", "−0.00") else text


def change(fraction: float) -> str:
    text = f"{100 * fraction:+.1f} %"
    return "0.0 %" if text in ("+0.0 %", "-0.0 %") else text.replace("-", "−")


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _figures(results: TheoryResults) -> tuple[ReportFigure, ...]:
    noisiest, arms = results.noise_sweep[-1], results.arms
    early, late = (
        "; ".join(f"{arm.arm.name} {getattr(arm, when).mean:.2f}" for arm in arms) for when in ("early", "late")
    )
    schur, block = (
        "{:.2f} to {:.2f}".format(*_ends([case.empirical / getattr(case, form) for case in results.cases]))
        for form in ("predicted", "paper")
    )
    return (
        drawn(
            "schur_against_block",
            schur_against_block(results),
            "A mark is a model: total variance of the weighted estimate in simulation, over what either formula "
            "predicts. On the line, the formula is right; above it, it promises too much.",
            "Scatter plot. Simulated over predicted total variance: Schur complement "
            f"{schur}, shared block {block}; {results.agreement.entries} entries tested.",
        ),
        drawn(
            "noise_ratio",
            noise_ratio(results),
            "Lines are closed forms, marks are simulated. Unweighted, the joint estimate is worse than X alone as soon "
            "as σy² > 3 σx².",
            "Line chart of variance against noise ratio. At the largest ratio: X alone "
            f"{number(noisiest.x_alone[0])}, unweighted {number(noisiest.unweighted[0])}, weighted "
            f"{number(noisiest.weighted[0])}.",
        ),
        drawn(
            "exchange_rates",
            exchange_rates(results),
            "How many samples of X one sample of Y replaces, in the world of the paper's figure 3, projections known. "
            "One number for all directions, the trace, hides what Y is for.",
            f"Dot plot of exchange rates. {exchange_sentence(results)}",
        ),
        drawn(
            "autoencoder_curves",
            autoencoder_curves(results),
            "Validation error on X while training, mean over seeds. Lines across are closed forms: where the best "
            "linear autoencoder of the same bottleneck ends.",
            f"Line chart of validation error. At the end: {late}.",
        ),
        drawn(
            "autoencoder_arms",
            autoencoder_arms(results),
            "The same early and at the end. A mark is a seed, the bar their mean.",
            f"Dot plot of validation error. Early: {early}. Late: {late}.",
        ),
    )


def schur_against_block(results: TheoryResults) -> Figure:
    """Draw the simulated total variance over the predicted one: the paper's formula, and the Schur complement."""
    with house_style():
        figure, (axis,) = stacked_panels([3.8])
        for name, form, look in (
            ("inverse of the shared block (paper)", "paper", Look(VERMILION, "^", "")),
            ("inverse Schur complement (corrected)", "predicted", Look(BLUE, "o", "")),
        ):
            predicted = [getattr(case, form) for case in results.cases]
            ratios = [case.empirical / expected for case, expected in zip(results.cases, predicted, strict=True)]
            _marks(axis, predicted, ratios, look, label=name, markersize=5, **FAINT)
        axis.axhline(1.0, color=BLACK, linewidth=1, zorder=1)
        _finish(
            axis,
            "Leaving nuisance parameters out promises too much",
            "predicted total variance of θc (trace of the covariance)",
            "simulated / predicted (ratio)",
            logarithmic="x",
        )
        figure.legend(loc="outside lower center", ncols=1)
    return figure


def noise_ratio(results: TheoryResults) -> Figure:
    """Draw the variance of three estimates of one number over σy / σx: lines closed form, marks simulated."""
    points = results.noise_sweep
    ratios = [point.sigma_y / point.sigma_x for point in points]
    with house_style():
        figure, (axis,) = stacked_panels([3.6])
        for name, look, pairs in (
            ("X alone", Look(BLACK, "s", "-"), [point.x_alone for point in points]),
            ("X and Y, unweighted", Look(VERMILION, "^", "--"), [point.unweighted for point in points]),
            ("X and Y, weighted by 1/σ²", Look(BLUE, "o", "-"), [point.weighted for point in points]),
        ):
            axis.plot(ratios, [exact for exact, _ in pairs], color=look.colour, linestyle=look.line, linewidth=1.6)
            _marks(axis, ratios, [found for _, found in pairs], look, label=name)
        _finish(
            axis,
            "A noisy Y spoils a clean X, unless weighted",
            "noise ratio σy / σx (one X with σx = 0.1, one Y)",
            "variance of the estimate of θ (units of θ²)",
            logarithmic="xy",
        )
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def exchange_rates(results: TheoryResults) -> Figure:
    """Draw how many X samples one Y sample replaces, along each shared dimension and by trace; a mark per seed."""
    dims = np.arange(1, len(results.exchange[0].by_direction) + 1)
    with house_style():
        figure, (axis,) = stacked_panels([3.4])
        for shift, result, look in zip((-0.22, 0.0, 0.22), results.exchange, SEED_LOOKS, strict=True):
            _marks(axis, dims + shift, result.by_direction, look, label=f"seed {result.seed}", markersize=5)
        traces = [result.by_trace for result in results.exchange]
        axis.axhspan(min(traces), max(traces), color=GREY, alpha=0.35, linewidth=0, label="by trace (range over seeds)")
        _finish(
            axis,
            "Theoretical exchange rate",
            "shared dimension (X sees 2 to 10 at a twentieth)",
            "X samples per Y sample (ratio)",
            logarithmic="y",
        )
        axis.set_ylim(1, None)
        axis.set_xticks(dims, ["1\n(X: full)", *map(str, dims[1:])])
        figure.legend(loc="outside lower center", ncols=4, columnspacing=1.0, handletextpad=0.3)
    return figure


def autoencoder_curves(results: TheoryResults) -> Figure:
    """Draw X's validation error over training steps, mean over seeds, with the closed-form linear floors."""
    with house_style():
        figure, (axis,) = stacked_panels([4.2])
        for arm in results.arms:
            curves = [curve for curve in results.curves if curve.arm == arm.arm.name]
            look, main = ARM_LOOKS[arm.arm.name], arm.arm.name in ("X", "X+Y")
            axis.plot(
                curves[0].steps,
                np.mean([curve.validation_error for curve in curves], axis=0),
                color=look.colour,
                linestyle=look.line,
                marker=look.marker,
                markersize=5 if main else 4,
                linewidth=2.2 if main else 1.3,
                label=arm.arm.name,
                zorder=4 if main else 3,
            )
        for form, name, colour in (
            ("attenuated", "best linear fit to X as trained on", PURPLE),
            ("full_strength", "best linear fit to X as validated on", SKY),
        ):
            value = float(np.mean([getattr(floor, form) for floor in results.floors]))
            axis.axhline(value, color=colour, linewidth=1.5, label=f"{name}: {value:.2f}")
        title = f"Gaussian study, mean over {len(results.request.seeds)} seeds"
        _finish(axis, title, "training steps", f"{ERROR}\n(mean squared error per number)", logarithmic="x")
        axis.set_ylim(0, None)
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def autoencoder_arms(results: TheoryResults) -> Figure:
    """Draw every arm's validation error early and at the end: a mark per seed, a bar for the mean."""
    names = [arm.arm.name for arm in results.arms]
    with house_style():
        figure, axes = stacked_panels([2.3, 2.3], share_x=True)
        for axis, step in zip(axes, (results.early_step, results.request.num_steps), strict=True):
            for row, name in enumerate(names):
                values, look = [curve.at(step) for curve in results.curves if curve.arm == name], ARM_LOOKS[name]
                _marks(axis, values, [row] * len(values), look, markersize=5.5, zorder=4, **FAINT)
                mean, bar = math.fsum(values) / len(values), Look(look.colour, "|", "")
                _marks(axis, [mean], [row], bar, markersize=15, markeredgewidth=2.2, zorder=3)
            axis.set_yticks(range(len(names)), names)
            axis.set_ylim(len(names) - 0.5, -0.5)
            axis.grid(axis="y", visible=False)
            axis.set_title(f"After {step:,} steps")
            axis.tick_params(labelbottom=True)
        axes[-1].set_xlim(0, None)
        axes[-1].set_xlabel(f"{ERROR} (mean squared error per number)")
    return figure


def _marks(axis: Axes, x: npt.ArrayLike, y: npt.ArrayLike, look: Look, **settings: Any) -> None:
    axis.plot(x, y, linestyle="none", marker=look.marker, color=look.colour, **settings)


def _finish(axis: Axes, title: str, x_label: str, y_label: str, *, logarithmic: str) -> None:
    """Name the axes; powers of ten are written as plain numbers, for the house style parses no mathematics."""
    axis.set(title=title, xlabel=x_label, ylabel=y_label, **{f"{name}scale": "log" for name in logarithmic})
    for name in logarithmic:
        one: Axis = getattr(axis, f"{name}axis")
        one.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}" if value < 1e5 else f"{value:g}"))
        one.set_minor_formatter(NullFormatter())
