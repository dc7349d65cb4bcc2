"""Figures of evaluators: the confusion matrix, legible with two classes and with a hundred, and accuracy by severity.

Shape legend: C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from uml_core.figures.drawing import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    WIDTH_IN,
    house_style,
    printable,
    stacked_panels,
)

CLASS_IN = 0.15  # a row of one class: letters of 6.5 points fit into it
MARGIN_IN = 2.2  # names and colour bar
MAX_NAMED = 100  # more classes are numbered
WITH_NUMBERS = 15  # so few classes have their counts written into the cells
LOOKS = (
    *((BLUE, "o", "-"), (VERMILION, "s", "-"), (GREEN, "^", "-"), (ORANGE, "D", "-"), (PURPLE, "v", "-")),
    *((SKY, "P", "-"), (BLUE, "X", "--"), (VERMILION, "<", "--"), (GREEN, ">", "--"), (ORANGE, "h", "--")),
)


def confusion_figure(counts_CC: npt.NDArray[np.int64], classes: Sequence[str]) -> Figure:
    """Draw the share of each class's rows (down) by prediction (across); small shares are kept visible.

    The figure grows with the number of classes instead of shrinking its letters.
    """
    count = len(classes)
    shares_CC = counts_CC / np.maximum(counts_CC.sum(axis=1, keepdims=True), 1)
    side = max(WIDTH_IN, MARGIN_IN + CLASS_IN * min(count, MAX_NAMED))
    with house_style(**{"axes.grid": False}):
        figure = Figure(figsize=(side, side * 0.93), layout="constrained")
        FigureCanvasAgg(figure)
        axis = figure.subplots()
        shown = np.ma.masked_equal(shares_CC, 0.0)
        image = axis.imshow(shown, cmap="cividis", norm=PowerNorm(0.5, vmin=0, vmax=1))
        if count <= MAX_NAMED:
            names = [printable(name, limit=22) for name in classes]
            size = 9 if count <= 12 else 6.5
            axis.set_xticks(range(count), names, rotation=90, fontsize=size)
            axis.set_yticks(range(count), names, fontsize=size)
            axis.set_xticks(np.arange(count + 1) - 0.5, minor=True)
            axis.set_yticks(np.arange(count + 1) - 0.5, minor=True)
            axis.grid(which="minor", color="#e4e4e4", linewidth=0.4)
        axis.tick_params(which="both", length=0)
        if count <= WITH_NUMBERS:
            _write_counts(axis, counts_CC, shares_CC)
        numbered = "" if count <= MAX_NAMED else " (class number)"
        axis.set_xlabel(f"predicted class{numbered}")
        axis.set_ylabel(f"true class{numbered}")
        bar = figure.colorbar(image, ax=axis, shrink=0.6, ticks=[0, 0.05, 0.25, 0.5, 1])
        bar.ax.set_yticklabels(["0", "5", "25", "50", "100"])
        bar.set_label("% of the class's rows (white: none)")
    return figure


def _write_counts(axis: Axes, counts_CC: npt.NDArray[np.int64], shares_CC: npt.NDArray[np.float64]) -> None:
    for row, column in np.argwhere(counts_CC > 0):
        colour = "black" if shares_CC[row, column] > 0.35 else "white"
        text = str(counts_CC[row, column])
        axis.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)


def severity_figure(accuracy: Mapping[str, Sequence[float]], *, clean: float, chance: float) -> Figure:
    """Draw accuracy in percent over severities 0 (undamaged) to 5, and the mean over corruptions."""
    with house_style():
        figure, (axis,) = stacked_panels([4.2])
        severities = range(len(next(iter(accuracy.values()))) + 1)
        for index, (name, values) in enumerate(accuracy.items()):
            colour, marker, line = LOOKS[index % len(LOOKS)]
            label = printable(name.replace("_", " "))
            shown = 100 * np.array([clean, *values])
            axis.plot(severities, shown, color=colour, marker=marker, linestyle=line, markersize=5, label=label)
        mean = 100 * np.array([clean, *np.mean(list(accuracy.values()), axis=0)])
        axis.plot(severities, mean, color=BLACK, linewidth=2.6, label="mean")
        axis.axhline(100 * chance, color=GREY, linestyle=":", label="chance")
        axis.set_ylim(0, min(100, 115 * max(clean, *map(max, accuracy.values()))))
        axis.set_xticks(list(severities), ["none", *(str(each) for each in severities[1:])])
        axis.set_xlabel("severity")
        axis.set_ylabel("accuracy (%)")
        figure.legend(loc="outside lower center", ncols=3)
    return figure
