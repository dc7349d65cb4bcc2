"""Figures of multimodal neurons: how units correlate, and the inputs that excite the top ones.

Shape legend: U units, M untrained networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from uml_core.analysis.neurons import Floats, UnitCorrelations
from uml_core.figures.drawing import BLACK, BLUE, GREY, VERMILION, canvas, house_style, printable, stacked_panels


@dataclass(frozen=True)
class ExcitingInputs:
    """A unit in words, and what excites it in either modality: (thumbnail or text, class) pairs."""

    title: str
    first: Sequence[tuple[object, str]]
    second: Sequence[tuple[object, str]]


def correlation_histogram(found: UnitCorrelations, baseline_MU: Floats, *, pairs: str) -> Figure:
    """Draw the units' partial correlations beside those of untrained networks, with what chance reaches."""
    with house_style():
        figure, (axis,) = stacked_panels([2.8])
        low = min(-0.05, float(min(found.partial_r.min(), baseline_MU.min())))
        edges = np.linspace(low, 1.0, 41)
        axis.hist(found.partial_r, bins=list(edges), color=BLUE, alpha=0.8, label="trained")
        counts = np.histogram(baseline_MU, bins=edges)[0] / len(baseline_MU)
        axis.stairs(counts, edges, color=BLACK, linewidth=1.5, label=f"mean of {len(baseline_MU)} untrained")
        axis.axvline(float(baseline_MU.max()), color=GREY, linestyle="--", linewidth=1.5, label="untrained maximum")
        chance = float(np.quantile(found.null_maxima, 0.95))
        axis.axvline(chance, color=VERMILION, linestyle=":", linewidth=2, label="95 % of shuffles stay below")
        axis.set_xlim(low, 1.0)
        axis.set_xlabel(f"r without confounds (no unit), over {found.num_pairs}\n{pairs}")
        axis.set_ylabel("units (count)")
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def top_units(units: Sequence[ExcitingInputs], *, names: tuple[str, str]) -> Figure:
    """Draw one band a unit: what excites it in the first modality on the left, in the second on the right."""
    with house_style(**{"axes.grid": False}):
        figure = canvas(1.35 * len(units) + 0.3)
        bands = figure.subfigures(len(units), 1, squeeze=False)[:, 0]
        for band, unit in zip(bands, units, strict=True):
            band.suptitle(unit.title, fontsize=9, x=0.01, ha="left")
            halves = band.subfigures(1, 2)
            for half, inputs in zip(halves, (unit.first, unit.second), strict=True):
                _half(half, inputs)
        first, second = (printable(name) for name in names)
        figure.supxlabel(f"left: rows of {first}; right: rows of {second}", fontsize=9)
    return figure


def _half(half: Any, inputs: Sequence[tuple[object, str]]) -> None:
    """Draw thumbnails side by side, or texts one below the other."""
    if any(isinstance(content, np.ndarray) for content, _ in inputs):
        for axis, (content, label) in zip(half.subplots(1, len(inputs), squeeze=False)[0], inputs, strict=True):
            if isinstance(content, np.ndarray):
                axis.imshow(content)
            axis.set_axis_off()
            axis.set_title(printable(label, limit=11), fontsize=5.5, loc="center", pad=2)
        return
    axis = half.subplots()
    axis.set_axis_off()
    for place, (content, label) in enumerate(inputs):
        height = 1 - (place + 0.5) / len(inputs)
        text = printable(str(content), limit=38)
        axis.text(0, height, f"{text}  [{printable(label, limit=14)}]", fontsize=6.5, va="center")
