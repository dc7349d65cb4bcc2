"""Accuracy against severity, one line a corruption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
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
    house_style,
    printable,
    stacked_panels,
)

LOOKS = (
    *((BLUE, "o", "-"), (VERMILION, "s", "-"), (GREEN, "^", "-"), (ORANGE, "D", "-"), (PURPLE, "v", "-")),
    *((SKY, "P", "-"), (BLUE, "X", "--"), (VERMILION, "<", "--"), (GREEN, ">", "--"), (ORANGE, "h", "--")),
)


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
