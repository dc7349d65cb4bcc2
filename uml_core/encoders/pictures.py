"""Picture files to upright RGB: what is read, by which rules, and what is refused in words a person understands."""

from __future__ import annotations

import functools
import io
import struct
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from uml_core.errors import RowError

MAX_PIXELS = 50_000_000  # a larger picture is refused before it is decompressed
MAX_ASPECT = 100  # long side over short side; resizing the short side to 224 would make a longer one immense


def open_picture(raw: bytes) -> Image.Image:
    """Decode a picture file to upright RGB, transparency on white; of an animation, the first frame.

    It may be what Pillow reads, and HEIC where package pillow-heif is installed. 16-bit and floating point pictures are
    scaled to 8 bits. Raises RowError with a plain reason.
    """
    reads_heif = _reads_heif()
    try:
        with warnings.catch_warnings():
            # Our own limit below is the one that counts; Pillow's warning would only repeat it.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture: Image.Image = Image.open(io.BytesIO(raw))
        _check_size(picture)
        picture.load()
        picture = ImageOps.exif_transpose(picture)
    except RowError:
        raise
    except Image.DecompressionBombError:  # Pillow's own limit, which it checks before it says how large the picture is
        raise RowError(f"picture of far too many pixels; at most {MAX_PIXELS} pixels are read") from None
    except UnidentifiedImageError:
        if raw[4:8] == b"ftyp" and not reads_heif:
            raise RowError("a picture that Pillow does not read, as HEIC: pip install pillow-heif") from None
        raise RowError("empty file (0 bytes)" if not raw else "not a picture in a known format") from None
    # What Pillow's plug-ins raise of a damaged header or body, found by damaging files at random.
    except (
        *(OSError, SyntaxError, ValueError, struct.error),
        *(IndexError, KeyError, TypeError, AttributeError, EOFError, OverflowError, ZeroDivisionError),
    ) as error:
        raise RowError(f"damaged picture: {error}") from None
    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):
        return _deep_to_rgb(picture)
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return picture.convert("RGB")


@functools.cache
def _reads_heif() -> bool:
    """Whether Pillow reads HEIC in this process: it does once package pillow-heif has told it how."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def _check_size(picture: Image.Image) -> None:
    size = f"picture of {picture.width} x {picture.height} pixels"
    if picture.width * picture.height > MAX_PIXELS:
        raise RowError(f"{size}; at most {MAX_PIXELS} pixels are read")
    short, long = sorted(picture.size)
    if long > MAX_ASPECT * short:
        raise RowError(f"{size}; one side is more than {MAX_ASPECT} times the other")


def _deep_to_rgb(picture: Image.Image) -> Image.Image:
    # Pillow clips deep grey at 255 when it converts; scale it to 8 bits instead.
    values = np.asarray(picture, dtype=np.float32)
    if not np.isfinite(values).all():
        raise RowError("picture with NaN or infinite pixels")
    brightest = values.max(initial=0.0)
    top = 65535.0 if brightest > 255 else 1.0 if picture.mode == "F" and brightest <= 1 else 255.0
    return Image.fromarray((values / top * 255).clip(0, 255).astype(np.uint8)).convert("RGB")
