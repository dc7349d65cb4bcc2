"""Figures of a sweep: what is drawn, its caption, and the same in words for whoever cannot see it.

In: `SweepResults`. Out: `ReportFigure`s; what a sweep has nothing to draw of is left out. Accuracies are in percent.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from uml_core.evaluation.statistics import mean_over_seeds
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
    printable,
    stacked_panels,
)
from uml_core.figures.words import percent, points
from uml_core.reporting.collect import ArmResults, Condition, SweepResults
from uml_core.reporting.space_rows import ClassGain, ClassGains, MixtureGrid, mixture_grids
from uml_core.reporting.tables import arm_rows, shift_rows
from uml_core.sweeps.space import Role

SPLIT_COLOURS = (VERMILION, GREEN, PURPLE, ORANGE, SKY, BLUE)
SPLIT_MARKERS = ("s", "^", "D", "v", "P", "X")
LOOKS: dict[Role, tuple[str, str]] = {
    **{"shuffled": (VERMILION, "^"), "noise": (ORANGE, "v"), "unrelated": (PURPLE, "D")},
    "shuffled_bridge": (VERMILION, "v"),
    **{"method": (SKY, "o"), "probe": (GREEN, "P"), "baseline": (GREY, "s"), "zero_shot": (GREY, "X")},
    **{"ridge": (GREEN, "v"), "discriminant": (GREEN, "D"), "logistic": (GREEN, "^"), "pile": (GREEN, "P")},
}


def sweep_figures(sweep: SweepResults) -> Iterator[ReportFigure]:
    """Draw what a sweep has: accuracy against shots and per arm, gains over mixtures, shifted test sets."""
    target = sweep.target or "the target"
    means = "; ".join(
        f"{row.arm} {row.condition.words} {percent(row.test.mean)} %" for row in arm_rows(sweep) if row.test
    )
    shifted = "; ".join(
        f"{row.arm} {row.condition.words} on {row.split} {percent(row.shifted.mean)} %" for row in shift_rows(sweep)
    )
    mixtures = "; ".join(
        f"{' '.join(filter(None, [grid.corpus, grid.condition.words]))}: best {points(grid.gain[grid.best])} points at "
        f"loss weight {grid.loss_weights[grid.best[0]]:g} and batch ratio {grid.batch_ratios[grid.best[1]]:g}, worst "
        f"{points(float(np.nanmin(grid.gain)))} points"
        for grid in mixture_grids(sweep)
    )
    drawings = (  # what draws, its caption, and the same in words
        (
            accuracy_against_shots,
            f"Mean test accuracy on {target} against training samples per class; lines up and down are 95 % "
            "intervals over seeds.",
            f"Line chart of test accuracy against shots. Means: {means}.",
        ),
        (
            accuracy_per_arm,
            f"Test accuracy on {target} per arm. A dot is a seed; above the dots, the bar is their mean and the "
            "line its 95 % interval. Arms share their seeds, so trust the paired differences in the table over "
            "overlapping lines.",
            f"Dot plot of test accuracy. Means: {means}.",
        ),
        (
            mixing_heat_map,
            f"What arm {sweep.headline} gains over {sweep.baseline} on validation, in percent points and paired by "
            "seed, by how much auxiliary data is mixed in. The framed cell is the best: it was picked for that, so its "
            "gain flatters.",
            f"Heat map of the gain on validation over {sweep.baseline}. {mixtures}.",
        ),
        (
            shifted_accuracy,
            f"Mean accuracy on the test set and the shifted test sets of {target}. The shorter the line, the less the "
            "shift costs.",
            f"Dot plot of test against shifted test accuracy. Means: {shifted}.",
        ),
    )
    for draw, caption, alternative in drawings:
        figure = draw(sweep)
        if figure is not None:
            yield drawn(f"{_slug(sweep.name)}_{draw.__name__}", figure, caption, alternative)


def class_figures(sweep: SweepResults, classes: Sequence[ClassGains]) -> Iterator[ReportFigure]:
    """Draw single classes under the first and the last condition: where data is scarcest, and where there is most."""
    for gains in classes if len(classes) < 3 else (classes[0], classes[-1]):
        where = gains.condition.words
        yield drawn(
            f"{_slug(sweep.name)}_classes_{'all' if gains.condition.shots is None else gains.condition.shots}",
            class_gain_figure(gains),
            caption=f"{sweep.headline} less {sweep.baseline} {where}, class by class: mean over seeds and 95 % "
            "interval of each class alone.",
            alternative=f"Dot plot of the gain of single classes {where}: {gains.num_up} of {len(gains.classes)} rise, "
            f"{gains.num_down} fall; largest {_gain(gains.classes[0])}, smallest {_gain(gains.classes[-1])}.",
        )


def _gain(gain: ClassGain) -> str:
    return f"{gain.label} {points(gain.difference.mean)} points"


def _slug(space: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", space).strip("-")[:60] or "sweep"


def accuracy_per_arm(sweep: SweepResults) -> Figure | None:
    """Draw test accuracy per arm: a dot per seed, mean and 95 % interval; one panel per condition."""
    panels = [(condition, arms) for condition in sweep.conditions if (arms := _measured(sweep, condition))]
    if not panels:
        return None
    with house_style():
        figure, axes = _arm_panels(panels, lambda axis, row, arm: _dots(axis, row, arm, look_of(sweep, arm.arm)))
        _percent_axis(axes, [value for _, arms in panels for arm in arms for value in arm.test.values()])
        axes[-1].set_xlabel("test accuracy (%)")
    return figure


def accuracy_against_shots(sweep: SweepResults) -> Figure | None:
    """Draw mean test accuracy against shots per class, with 95 % intervals; None for a single condition."""
    conditions = [condition for condition in sweep.conditions if _measured(sweep, condition)]
    if len(conditions) < 2:
        return None
    names = [name for name in sweep.arm_names() if any(sweep.arm(name, condition) for condition in conditions)]
    with house_style():
        figure, axes = stacked_panels([3.4 + 0.12 * len(names)])
        axis = axes[0]
        for index, name in enumerate(names):
            shift = 0.3 * (index / max(1, len(names) - 1) - 0.5)
            _shots_line(axis, sweep, name, conditions, shift=shift)
        axis.set_xticks(range(len(conditions)), ["all" if c.shots is None else str(c.shots) for c in conditions])
        axis.set_xlim(-0.4, len(conditions) - 0.6)
        axis.set_xlabel("training samples per class of the target (shots)")
        axis.set_ylabel("test accuracy (%)")
        axis.set_ylim(max(0.0, axis.get_ylim()[0]), min(100.0, axis.get_ylim()[1]))
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def mixing_heat_map(sweep: SweepResults) -> Figure | None:
    """Draw the headline's gain on validation over loss weight × batch ratio; the best cell is framed."""
    grids = mixture_grids(sweep)
    if not grids:
        return None
    with house_style(**{"axes.grid": False}):
        figure, axes = stacked_panels([0.5 * len(grid.loss_weights) + 1.1 for grid in grids])
        largest = max(float(np.nanmax(np.abs(100 * grid.gain))) for grid in grids)
        for axis, grid in zip(axes, grids, strict=True):
            _heat_map(axis, grid, limit=largest or 1.0)
        axes[-1].set_xlabel("batch ratio (auxiliary samples per target sample)")
    return figure


def shifted_accuracy(sweep: SweepResults) -> Figure | None:
    """Draw test accuracy against every shifted test set, per arm; one panel per condition. None without shifts."""
    splits = sorted({split for arm in sweep.arms.values() for split in arm.shift})
    panels = [(condition, _measured(sweep, condition)) for condition in sweep.conditions]
    panels = [(condition, arms) for condition, arms in panels if any(arm.shift for arm in arms)]
    if not panels:
        return None
    with house_style():
        figure, axes = _arm_panels(panels, lambda axis, row, arm: _dumbbell(axis, row, arm, splits))
        _percent_axis(axes, [])
        axes[-1].set_xlabel("mean accuracy over seeds (%)")
        handles, labels = axes[0].get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=3)
    return figure


def look_of(sweep: SweepResults, name: str) -> dict[str, Any]:
    """matplotlib's settings of an arm by what it is for; those that are only compared get colours by their order."""
    arm, position = sweep.design.arm(name), sweep.arm_names().index(name)
    look = SPLIT_COLOURS[position % 6], SPLIT_MARKERS[position % 6], (":", "-.")[position // 6 % 2]
    if name == sweep.baseline:
        look = BLACK, "s", "-"
    elif name == sweep.headline:
        look = BLUE, "o", "-"
    elif arm.role in LOOKS and not arm.facts.trained:
        look = *LOOKS[arm.role], "--" if arm.facts.initialised else "-"
    return dict(zip(("color", "marker", "linestyle"), look, strict=True))


def _measured(sweep: SweepResults, condition: Condition) -> list[ArmResults]:
    return [arm for name in sweep.arm_names() if (arm := sweep.arm(name, condition)) is not None]


def _arm_panels(
    panels: Sequence[tuple[Condition, list[ArmResults]]], draw: Callable[[Axes, int, ArmResults], None]
) -> tuple[Figure, list[Axes]]:
    """A figure with one panel per condition, and one row per arm in it."""
    figure, axes = stacked_panels([0.3 * len(arms) + 0.75 for _, arms in panels], share_x=True)
    for axis, (condition, arms) in zip(axes, panels, strict=True):
        for row, arm in enumerate(arms):
            draw(axis, row, arm)
        _name_rows(axis, [arm.arm for arm in arms], title=condition.title)
    return figure, axes


def _dots(axis: Axes, row: int, arm: ArmResults, look: dict[str, Any]) -> None:
    """Draw seeds as dots and, above them, the 95 % interval of their mean as a line, the mean as a bar across."""
    values = list(arm.test.values())
    mean, low, high = _interval(values)
    if len(values) > 1:
        above = row - 0.16
        axis.plot([low, high], [above, above], color=look["color"], linewidth=1.6, zorder=2)
        axis.plot([mean], [above], marker="|", color=look["color"], markersize=9, markeredgewidth=2.6, zorder=3)
    axis.plot(
        [100 * value for value in values],
        [row + 0.16 if len(values) > 1 else row] * len(values),
        **{**look, "linestyle": "none"},
        markersize=5.5,
        alpha=0.75,
        markeredgecolor="white",
        markeredgewidth=0.5,
        zorder=4,
    )


def _shots_line(axis: Axes, sweep: SweepResults, name: str, conditions: Sequence[Condition], *, shift: float) -> None:
    points = [(position, arm) for position, condition in enumerate(conditions) if (arm := sweep.arm(name, condition))]
    intervals = [_interval(list(arm.test.values())) for _, arm in points]
    means = [mean for mean, _, _ in intervals]
    errors = [[mean - low for mean, low, _ in intervals], [high - mean for mean, _, high in intervals]]
    look, main = look_of(sweep, name), name in (sweep.baseline, sweep.headline)
    axis.errorbar(
        [position + shift for position, _ in points],
        means,
        yerr=errors,
        label=printable(name),
        **look,
        linewidth=2.2 if main else 1.2,
        markersize=6 if main else 4.5,
        elinewidth=1.2 if main else 0.8,
        zorder=4 if main else 3,
    )


def _dumbbell(axis: Axes, row: int, arm: ArmResults, splits: Sequence[str]) -> None:
    test = 100 * float(np.mean(list(arm.test.values())))
    marks = [(test, "test", "o", BLACK)]
    for index, split in enumerate(splits):
        if arm.shift.get(split):
            mean = 100 * float(np.mean(list(arm.shift[split].values())))
            style = index % len(SPLIT_COLOURS)
            marks.append((mean, split, SPLIT_MARKERS[style], SPLIT_COLOURS[style]))
    accuracies = [mark[0] for mark in marks]
    axis.plot([min(accuracies), max(accuracies)], [row, row], color="#aaaaaa", linewidth=1.5, zorder=2)
    for accuracy, label, marker, colour in marks:
        axis.plot([accuracy], [row], label=printable(label), marker=marker, color=colour, linestyle="none", zorder=3)


def _heat_map(axis: Axes, grid: MixtureGrid, *, limit: float) -> None:
    values = 100 * grid.gain
    axis.imshow(np.ma.masked_invalid(values), cmap="PuOr_r", vmin=-limit, vmax=limit, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        text = "–" if math.isnan(value) else "0.0" if abs(value) < 0.05 else f"{value:+.1f}"
        colour = "white" if abs(value) > 0.6 * limit else "black"
        axis.text(column, row, text, ha="center", va="center", color=colour)
    row, column = grid.best
    axis.add_patch(
        Rectangle((column - 0.47, row - 0.46), 0.94, 0.92, fill=False, edgecolor=BLACK, linewidth=3, zorder=5)
    )
    axis.set_xticks(range(len(grid.batch_ratios)), [f"{ratio:g}" for ratio in grid.batch_ratios])
    axis.set_yticks(range(len(grid.loss_weights)), [f"{weight:g}" for weight in grid.loss_weights])
    axis.set_ylabel("loss weight λ")
    corpus = f", {printable(grid.corpus)}" if grid.corpus else ""
    axis.set_title(f"{grid.condition.title}{corpus}: gain on validation (%)")
    axis.tick_params(length=0)


def _name_rows(axis: Axes, names: Sequence[str], *, title: str) -> None:
    axis.set_yticks(range(len(names)), [printable(name) for name in names])
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.grid(visible=False, axis="y")
    axis.set_title(title)
    axis.tick_params(labelbottom=True)


def _percent_axis(axes: Sequence[Axes], values: Sequence[float]) -> None:
    """Fit the shared axis to the seeds rather than to a wild interval of two, and stay within 0 to 100."""
    low, high = axes[0].get_xlim()
    if values:
        margin = max(3.0, 100 * (max(values) - min(values)))
        low, high = max(low, 100 * min(values) - margin), min(high, 100 * max(values) + margin)
    axes[0].set_xlim(max(-1.0, low), min(101.0, high))


def _interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval in percent; one value is its own interval."""
    found = mean_over_seeds(dict(enumerate(values)))
    ends = (found.mean, found.mean) if math.isnan(found.low) else (found.low, found.high)
    return 100 * found.mean, 100 * ends[0], 100 * ends[1]


def class_gain_figure(gains: ClassGains) -> Figure:
    """Draw the paired difference of each shown class with its 95 % interval, in percent points."""
    shown = gains.shown
    with house_style():
        figure, (axis,) = stacked_panels([0.24 * len(shown) + 0.8])
        axis.axvline(0, color=GREY, linewidth=1)
        for row, gain in enumerate(shown):
            mean, low, high = (
                100 * value for value in (gain.difference.mean, gain.difference.low, gain.difference.high)
            )
            colour = BLUE if mean > 0 else VERMILION if mean < 0 else GREY
            if not math.isnan(low):
                axis.plot([low, high], [row, row], color=colour, linewidth=1.4, zorder=2)
            axis.plot([mean], [row], marker="o" if mean >= 0 else "D", color=colour, markersize=5, zorder=3)
        _name_rows(axis, [gain.label for gain in shown], title=gains.condition.title)
        means = [100 * gain.difference.mean for gain in shown]
        margin = max(10.0, float(np.ptp(means)) / 2)
        low, high = axis.get_xlim()
        axis.set_xlim(max(low, min(means) - margin), min(high, max(means) + margin))
        axis.set_xlabel("difference in test accuracy of the class (%)")
    return figure
