"""Figures of the theory page, in the style of `figures`.

In: `TheoryResults`. Out: matplotlib Figures. Total variance is the trace of a covariance, in units of θ²; validation
error is a mean squared error per observed number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
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
    house_style,
    stacked_panels,
)
from uml_core.reporting.figures import Look
from uml_core.theory.study import TheoryResults

ARM_LOOKS = {
    "X": Look(BLACK, "s", "-"),
    "X+Y": Look(BLUE, "o", "-"),
    "half X": Look(GREY, "X", "--"),
    "X, double batch": Look(GREEN, "P", "-."),
    "X+permuted Y": Look(VERMILION, "^", "--"),
    "X+noise": Look(ORANGE, "v", ":"),
}
SEED_LOOKS = (Look(BLUE, "o", ""), Look(VERMILION, "^", ""), Look(GREEN, "s", ""))


def schur_against_block(results: TheoryResults) -> Figure:
    """Draw the simulated total variance over the predicted one: the paper's formula, and the Schur complement."""
    with house_style():
        figure, (axis,) = stacked_panels([3.8])
        measured = [case.empirical for case in results.cases]
        for name, predicted, look in (
            ("inverse of the shared block (paper)", [case.paper for case in results.cases], Look(VERMILION, "^", "")),
            ("inverse Schur complement (corrected)", [case.predicted for case in results.cases], Look(BLUE, "o", "")),
        ):
            ratios = [found / expected for found, expected in zip(measured, predicted, strict=True)]
            axis.plot(
                predicted,
                ratios,
                linestyle="none",
                marker=look.marker,
                color=look.colour,
                markersize=5,
                alpha=0.75,
                markeredgecolor="white",
                markeredgewidth=0.5,
                label=name,
            )
        axis.axhline(1.0, color=BLACK, linewidth=1, zorder=1)
        axis.set_xscale("log")
        _plain(axis, x=True, y=False)
        axis.set_xlabel("predicted total variance of θc (trace of the covariance)")
        axis.set_ylabel("simulated / predicted (ratio)")
        axis.set_title("Leaving nuisance parameters out promises too much")
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
            axis.plot(
                ratios,
                [found for _, found in pairs],
                linestyle="none",
                marker=look.marker,
                color=look.colour,
                label=name,
            )
        axis.set_xscale("log")
        axis.set_yscale("log")
        _plain(axis, x=True)
        axis.set_xlabel("noise ratio σy / σx (one X with σx = 0.1, one Y)")
        axis.set_ylabel("variance of the estimate of θ (units of θ²)")
        axis.set_title("A noisy Y spoils a clean X, unless weighted")
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def exchange_rates(results: TheoryResults) -> Figure:
    """Draw how many X samples one Y sample replaces, along each shared dimension and by trace; a mark per seed."""
    dims = len(results.exchange[0].by_direction)
    with house_style():
        figure, (axis,) = stacked_panels([3.4])
        for place, (result, look) in enumerate(zip(results.exchange, SEED_LOOKS, strict=True)):
            shift = 0.22 * (place - 1)
            axis.plot(
                np.arange(1, dims + 1) + shift,
                result.by_direction,
                linestyle="none",
                marker=look.marker,
                color=look.colour,
                markersize=5,
                label=f"seed {result.seed}",
            )
        traces = [result.by_trace for result in results.exchange]
        axis.axhspan(min(traces), max(traces), color=GREY, alpha=0.35, linewidth=0, label="by trace (range over seeds)")
        axis.set_yscale("log")
        axis.set_ylim(1, None)
        _plain(axis)
        axis.set_xticks(range(1, dims + 1), ["1\n(X: full)", *map(str, range(2, dims + 1))])
        axis.set_xlabel("shared dimension (X sees 2 to 10 at a twentieth)")
        axis.set_ylabel("X samples per Y sample (ratio)")
        axis.set_title("Theoretical exchange rate")
        figure.legend(loc="outside lower center", ncols=4, columnspacing=1.0, handletextpad=0.3)
    return figure


def autoencoder_curves(results: TheoryResults) -> Figure:
    """Draw X's validation error over training steps, mean over seeds, with the closed-form linear floors."""
    with house_style():
        figure, (axis,) = stacked_panels([4.2])
        for arm in results.arms:
            curves = [curve for curve in results.curves if curve.arm == arm.arm.name]
            errors = np.array([curve.validation_error for curve in curves])
            look = ARM_LOOKS[arm.arm.name]
            main = arm.arm.name in ("X", "X+Y")
            axis.plot(
                curves[0].steps,
                errors.mean(axis=0),
                color=look.colour,
                linestyle=look.line,
                marker=look.marker,
                markersize=5 if main else 4,
                linewidth=2.2 if main else 1.3,
                label=arm.arm.name,
                zorder=4 if main else 3,
            )
        attenuated = float(np.mean([floor.attenuated for floor in results.floors]))
        best = float(np.mean([floor.full_strength for floor in results.floors]))
        for value, name, colour in (
            (attenuated, "best linear fit to X as trained on", PURPLE),
            (best, "best linear fit to X as validated on", SKY),
        ):
            axis.axhline(value, color=colour, linewidth=1.5, label=f"{name}: {value:.2f}")
        axis.set_xscale("log")
        axis.set_ylim(0, None)
        _plain(axis, x=True, y=False)
        axis.set_xlabel("training steps")
        axis.set_ylabel("validation error on X\n(mean squared error per number)")
        axis.set_title(f"Gaussian study, mean over {len(results.request.seeds)} seeds")
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def autoencoder_arms(results: TheoryResults) -> Figure:
    """Draw every arm's validation error early and at the end: a mark per seed, a bar for the mean."""
    steps = [results.early_step, results.request.num_steps]
    with house_style():
        figure, axes = stacked_panels([2.3, 2.3], share_x=True)
        for axis, step in zip(axes, steps, strict=True):
            for row, arm in enumerate(results.arms):
                look = ARM_LOOKS[arm.arm.name]
                values = [curve.at(step) for curve in results.curves if curve.arm == arm.arm.name]
                _seed_marks(axis, row, values, look)
            axis.set_yticks(range(len(results.arms)), [arm.arm.name for arm in results.arms])
            axis.set_ylim(len(results.arms) - 0.5, -0.5)
            axis.grid(axis="y", visible=False)
            axis.set_title(f"After {step:,} steps")
            axis.tick_params(labelbottom=True)
        axes[-1].set_xlim(0, None)
        axes[-1].set_xlabel("validation error on X (mean squared error per number)")
    return figure


def _seed_marks(axis: Axes, row: int, values: Sequence[float], look: Look) -> None:
    axis.plot(
        values,
        [row] * len(values),
        linestyle="none",
        marker=look.marker,
        color=look.colour,
        markersize=5.5,
        alpha=0.75,
        markeredgecolor="white",
        markeredgewidth=0.5,
        zorder=4,
    )
    mean = math.fsum(values) / len(values)
    axis.plot([mean], [row], marker="|", color=look.colour, markersize=15, markeredgewidth=2.2, zorder=3)


def _plain(axis: Axes, *, x: bool = False, y: bool = True) -> None:
    """Write a logarithmic axis's powers of ten as plain numbers: the house style parses no mathematics."""
    for chosen, one in ((x, axis.xaxis), (y, axis.yaxis)):
        if chosen:
            one.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}" if value < 1e5 else f"{value:g}"))
            one.set_minor_formatter(NullFormatter())
