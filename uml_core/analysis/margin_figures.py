"""Figures of margins, prototypes and the decision plane, in the report's style.

Shape legend: N rows, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from uml_core.analysis.margins import DecisionPlane, Margins
from uml_core.analysis.shared_space import Codes, Floats
from uml_core.figures.drawing import (
    BLACK,
    BLUE,
    ORANGE,
    VERMILION,
    WIDTH_IN,
    canvas,
    house_style,
    printable,
    stacked_panels,
)

MAX_NAMED_CLASSES = 45  # more names than this are no longer legible beside a heat map


@dataclass(frozen=True)
class PlaneRows:
    """Rows of the decision plane: class codes (N,), and which of them are held out (N,) rather than trained on."""

    labels: Codes
    held_out: np.ndarray[tuple[int], np.dtype[np.bool_]]
    names: tuple[str, str]
    codes: tuple[int, int]


def margin_histogram(margins: Margins, *, split: str) -> Figure:
    """Draw the distribution of the functional margin: left of 0 is wrong."""
    values_N = margins.functional
    with house_style():
        figure, (axis,) = stacked_panels([2.8])
        width = float(np.ptp(values_N)) / min(40, max(8, len(values_N) // 8)) or 1.0
        # An edge lies at 0, so that no bar holds right and wrong rows together.
        edges = width * np.arange(np.floor(values_N.min() / width), np.ceil(values_N.max() / width) + 1)
        right = values_N > 0
        for chosen, colour, label in ((right, BLUE, "right class"), (~right, VERMILION, "wrong class")):
            axis.hist(
                values_N[chosen], bins=list(edges), color=colour, label=f"{label} ({int(chosen.sum())})", alpha=0.85
            )
        axis.axvline(0, color=BLACK, linewidth=1.4)
        axis.set_xlabel("functional margin (units of the shared space)")
        axis.set_ylabel(f"{split} rows (count)")
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def prototype_heat_map(cosines_CC: Floats, classes: Sequence[str], *, corpus: str) -> Figure:
    """Draw the cosine of head rows (down) with class-mean auxiliary embeddings (across)."""
    count = len(classes)
    named = count <= MAX_NAMED_CLASSES
    with house_style(**{"axes.grid": False}):
        figure = canvas(WIDTH_IN * 0.95)
        axis = figure.subplots()
        image = axis.imshow(np.ma.masked_invalid(cosines_CC), cmap="cividis")
        names = [printable(name, limit=22) for name in classes]
        size = 9 if count <= 12 else 5.5
        if named:
            axis.set_xticks(range(count), names, rotation=90, fontsize=size)
            axis.set_yticks(range(count), names, fontsize=size)
        axis.set_xlabel(f"class mean of {printable(corpus)}" + ("" if named else " (class number)"))
        axis.set_ylabel("head row of the class" + ("" if named else " (class number)"))
        axis.tick_params(length=0)
        figure.colorbar(image, ax=axis, shrink=0.7, label="cosine (no unit)")
    return figure


def plane_scatter(plane: DecisionPlane, rows: PlaneRows) -> Figure:
    """Draw rows of two classes and the boundary between them; hollow marks are train rows."""
    with house_style():
        figure, (axis,) = stacked_panels([3.6])
        looks = zip(rows.codes, rows.names, (BLUE, ORANGE), ("o", "s"), strict=True)
        for code, name, colour, marker in looks:
            for held_out, words in ((True, "held out"), (False, "train")):
                chosen = (rows.labels == code) & (rows.held_out == held_out)
                axis.scatter(
                    plane.across[chosen],
                    plane.along[chosen],
                    label=f"{printable(name)}, {words} ({int(chosen.sum())})",
                    marker=marker,
                    s=34,
                    facecolor=colour if held_out else "none",
                    edgecolor="white" if held_out else colour,
                    linewidth=0.6 if held_out else 1.4,
                    zorder=3,
                )
        axis.axvline(0, color=BLACK, linewidth=1.4, label="boundary")
        first, second = (printable(name, limit=22) for name in rows.names)
        axis.set_title(f"← {second}", fontsize=9)
        axis.set_title(f"{first} →", fontsize=9, loc="right")
        axis.set_xlabel("distance to the boundary (units of the shared space)")
        axis.set_ylabel("first principal direction\nalong the boundary (same units)")
        figure.legend(loc="outside lower center", ncols=2)
    return figure
