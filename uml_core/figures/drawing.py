"""What every figure shares: one style, colours that everyone can tell apart, panels, and a figure's file.

No pyplot and no global state. Colours are Okabe and Ito's, told apart under every kind of colour blindness; markers
differ as well. Accuracies are drawn in percent.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#767676"
WIDTH_IN = 5.2  # a phone shows it at three quarters, with letters still legible
STYLE: dict[str, Any] = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "text.parse_math": False,  # a "$" in a corpus's name is a letter
    "svg.hashsalt": "uml",
}


@dataclass(frozen=True)
class ReportFigure:
    """One drawn figure: file name without ending, what it shows in words, and its SVG."""

    name: str
    caption: str
    alternative: str
    svg: bytes

    @property
    def data_uri(self) -> str:
        """The SVG for an img element; as an image it can run no script and shares no ids with other figures."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg).decode()}"


def drawn(name: str, figure: Figure, caption: str, alternative: str) -> ReportFigure:
    return ReportFigure(name, caption, alternative, svg_of(figure))


@contextmanager
def house_style(**settings: Any) -> Iterator[None]:
    """Draw in the house's style, with further matplotlib settings where a figure needs them."""
    merged: Any = {**STYLE, **settings}
    with mpl.rc_context(merged):
        yield


def stacked_panels(heights_in: Sequence[float], *, share_x: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure with panels of these heights, one below the other: a phone scrolls, it does not widen."""
    figure = canvas(sum(heights_in) + 0.5)
    grid = figure.subplots(len(heights_in), 1, squeeze=False, sharex=share_x, height_ratios=list(heights_in))
    return figure, list(grid[:, 0])


def canvas(height_in: float) -> Figure:
    return Figure(figsize=(WIDTH_IN, height_in), layout="constrained")


def svg_of(figure: Figure) -> bytes:
    """A figure as SVG whose letters are outlines."""
    buffer = io.BytesIO()
    with house_style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a name in a script it lacks
        # By a canvas: figure.savefig draws everything twice, the first time for the layout alone.
        drawing: Any = FigureCanvasSVG(figure)
        drawing.print_svg(buffer, metadata={"Date": None})
    return buffer.getvalue()


def printable(name: str, *, limit: int = 24) -> str:
    """A name fit for a figure: one line, printable, not too long."""
    text = "".join(letter if letter.isprintable() else "?" for letter in name).strip() or "(no name)"
    text = text.lstrip("_") or text  # matplotlib leaves labels with a leading _ out of legends
    return text if len(text) <= limit else text[: limit - 1] + "…"
