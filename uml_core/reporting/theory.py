"""The theory page: one HTML file that needs nothing else, for a reader of the paper, and its figures.

In: `TheoryResults`. Out: a `TheoryPage`, whose first sentence says how many statements hold as the paper has them.
Total variance is the trace of a covariance, in units of θ²; validation error is a mean squared error per number.

    page = build_theory_page(results, wall_s=170.0, num_cpus=2)
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

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
from uml_core.figures.words import points
from uml_core.reporting.page import environment
from uml_core.theory.simulation import agreement
from uml_core.theory.statements import STATEMENTS
from uml_core.theory.study import TheoryResults

SUBSCRIPT = re.compile(r"(?<=\w)_(\w)")
ARM_STYLES: Mapping[str, Any] = {
    "X": {"color": BLACK, "marker": "s", "linestyle": "-"},
    "X+Y": {"color": BLUE, "marker": "o", "linestyle": "-"},
    "half X": {"color": GREY, "marker": "X", "linestyle": "--"},
    "X, double batch": {"color": GREEN, "marker": "P", "linestyle": "-."},
    "X+permuted Y": {"color": VERMILION, "marker": "^", "linestyle": "--"},
    "X+noise": {"color": ORANGE, "marker": "v", "linestyle": ":"},
}


@dataclass(frozen=True)
class TheoryPage:
    """The page, what it says in short, and its figures."""

    html: str
    words: str
    figures: tuple[ReportFigure, ...]


def build_theory_page(results: TheoryResults, *, wall_s: float, num_cpus: int) -> TheoryPage:
    """The page on a run's results; `wall_s` and `num_cpus` say what it took."""
    figures = (_schur_against_block(results), _autoencoder_curves(results))
    sentences = (statements_sentence(results), simulation_sentence(results), study_sentence(results))
    templates = environment()
    templates.filters.update(letters=letters, number=number, signed=signed)
    html = templates.get_template("theory.html.j2").render(
        results=results,
        agreement=agreement(results.models),
        sections=list(zip(STATEMENTS, results.findings, strict=True)),
        sentences=sentences,
        figures={figure.name: figure for figure in figures},
        wall_s=wall_s,
        num_cpus=num_cpus,
    )
    return TheoryPage(html, "\n".join(sentences), figures)


def statements_sentence(results: TheoryResults) -> str:
    findings, failing = results.findings, [found.name for found in results.findings if found.fails]
    corrected = "true" if all(found.corrected_held == found.drawn for found in findings) else "NOT true"
    return (
        f"Of {len(findings)} statements, {len(findings) - len(failing)} hold as the paper has them and {len(failing)} "
        f"need a corrected form ({', '.join(failing)}); the corrected forms were {corrected} in all "
        f"{sum(found.drawn for found in findings):,} random cases."
    )


def simulation_sentence(results: TheoryResults) -> str:
    found = agreement(results.models)
    return (
        f"Simulated covariances {'agree' if found.agrees else 'DISAGREE'} with the corrected closed forms: over "
        f"{found.entries:,} entries of {len(results.models)} models the largest deviation is {found.largest_z:.1f} "
        f"standard errors, where chance allows {found.limit:.1f}."
    )


def study_sentence(results: TheoryResults) -> str:
    """What X+Y does for X in the Gaussian study, early and at the end, and what a Y without structure does."""
    request, arms = results.request, {arm.arm.name: arm for arm in results.arms}
    if request.steps <= request.early_step:
        return f"The Gaussian study ran for {request.steps:,} steps only, too few to say anything."

    def change(name: str, when: str) -> str:
        return f"{points(getattr(arms[name], when).mean / getattr(arms['X'], when).mean - 1)} %"

    return (
        f"In the Gaussian study X+Y changes the error on X by {change('X+Y', 'early')} at step {request.early_step:,} "
        f"and by {change('X+Y', 'late')} at step {request.steps:,}; a Y without any structure does "
        f"{change('X+permuted Y', 'early')} and {change('X+permuted Y', 'late')}."
    )


def letters(text: str) -> Markup:
    """Mathematics in words as HTML: what follows an underscore is a subscript."""
    return Markup(SUBSCRIPT.sub(r"<sub>\1</sub>", str(escape(text))))


def number(value: float) -> str:
    """A number with four digits; "infinite", and a dash for none."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "infinite"
    return f"{round(value, 12):.4g}".replace("-", "−")


def signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _schur_against_block(results: TheoryResults) -> ReportFigure:
    with house_style():
        figure, (axis,) = stacked_panels([3.8])
        for name, form, colour, marker in (
            ("inverse of the shared block (paper)", "paper", VERMILION, "^"),
            ("inverse Schur complement (corrected)", "corrected", BLUE, "o"),
        ):
            predicted = [getattr(model, form) for model in results.models]
            ratios = [getattr(model, f"over_{form}") for model in results.models]
            axis.plot(predicted, ratios, marker, color=colour, label=name, alpha=0.75, markersize=5)
        axis.axhline(1.0, color=BLACK, linewidth=1, zorder=1)
        axis.set(
            title="Leaving nuisance parameters out promises too much",
            xlabel="predicted total variance of θc (trace of the covariance)",
            ylabel="simulated / predicted (ratio)",
        )
        _finish(figure, axis, columns=1)
    ratios = [model.over_paper for model in results.models]
    return drawn(
        "schur_against_block",
        figure,
        "A mark is a model: total variance of the weighted estimate in simulation, over what either formula predicts. "
        "On the line, the formula is right; above it, it promises too much.",
        "Scatter plot of simulated over predicted total variance: near 1 for the Schur complement, "
        f"{min(ratios):.2f} to {max(ratios):.2f} for the shared block.",
    )


def _autoencoder_curves(results: TheoryResults) -> ReportFigure:
    with house_style():
        figure, (axis,) = stacked_panels([4.2])
        for name, style in ARM_STYLES.items():
            errors = [curve.errors for curve in results.curves if curve.arm == name]
            means = np.mean([[*each.values()] for each in errors], axis=0)
            axis.plot([*errors[0]], means, label=name, markersize=5, **style)
        for form, colour in (("trained", PURPLE), ("validated", SKY)):
            floor = float(np.mean([getattr(world, f"floor_as_{form}") for world in results.worlds]))
            axis.axhline(floor, color=colour, label=f"best linear fit to X as {form} on: {floor:.2f}")
        axis.set(
            title=f"Gaussian study, mean over {len(results.request.seeds)} seeds",
            xlabel="training steps",
            ylabel="validation error on X\n(mean squared error per number)",
        )
        axis.set_ylim(0, None)
        _finish(figure, axis, columns=2)
    return drawn(
        "autoencoder_curves",
        figure,
        "Validation error on X while training, mean over seeds. Lines across are closed forms: where the best linear "
        "autoencoder of the same bottleneck ends.",
        "Line chart of validation error. At the end: "
        f"{'; '.join(f'{arm.arm.name} {arm.late.mean:.2f}' for arm in results.arms)}.",
    )


def _finish(figure: Figure, axis: Axes, *, columns: int) -> None:
    """A logarithmic axis in plain numbers, for the house style parses no mathematics, and the legend below."""
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    figure.legend(loc="outside lower center", ncols=columns)
