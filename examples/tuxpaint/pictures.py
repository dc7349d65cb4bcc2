"""A stamp's picture as a square PNG on white: the object fills the frame, so that no encoder's crop cuts it."""

from __future__ import annotations

import io
from pathlib import Path

import resvg_py
from PIL import Image

SIDE = 256  # pixels: the usual resize before the usual crop to 224
MARGIN = 0.06  # of SIDE, on each side: what that crop takes away


def square_png(picture: Path) -> bytes:
    """A .png or .svg as SIDE × SIDE PNG bytes: transparent borders cut off, centred on white.

    Raises:
        OSError: the picture cannot be read.
        ValueError: an SVG cannot be drawn, or nothing of the picture is visible.
    """
    content = _render(picture) if picture.suffix == ".svg" else picture.read_bytes()
    with Image.open(io.BytesIO(content)) as opened:
        rgba = opened.convert("RGBA")
    visible = rgba.getchannel("A").getbbox()
    if visible is None:
        raise ValueError("nothing of it is visible")
    rgba = rgba.crop(visible)
    inner = round(SIDE * (1 - 2 * MARGIN))
    scale = inner / max(rgba.size)
    width, height = (max(1, round(length * scale)) for length in rgba.size)
    flat = Image.new("RGBA", rgba.size, "white")
    flat.alpha_composite(rgba)  # before scaling: transparent pixels have any colour
    canvas = Image.new("RGB", (SIDE, SIDE), "white")
    scaled = flat.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    canvas.paste(scaled, ((SIDE - width) // 2, (SIDE - height) // 2))
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG")
    return buffer.getvalue()


def _render(svg: Path) -> bytes:
    # Twice the size it is wanted in: its borders are cut off first. No system fonts: the same pixels on every machine.
    # CSS's 96 dots an inch: resvg_py's default of 0 refuses every drawing measured in points or centimetres.
    return bytes(resvg_py.svg_to_bytes(svg_path=str(svg), width=2 * SIDE, dpi=96, skip_system_fonts=True))
