"""Rows as users have them: odd, damaged and hostile files, each with what must become of it.

`BAD_ROWS[modality]` maps a file name to a `BadRow`; `write_bad_rows` puts them into a folder CLASS/FILE. A row whose
`reason` is None is embedded; any other is rejected, and its reason contains the given words.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
from PIL import Image

RATE = 16_000


@dataclass(frozen=True)
class BadRow:
    """How the file is made, and words of the reason it is rejected for; None: it is embedded."""

    make: Callable[[], bytes]
    reason: str | None = None


def picture(mode: str = "RGB", size: tuple[int, int] = (50, 40)) -> Image.Image:
    """Return a picture of coloured noise in a mode."""
    pixels = np.random.default_rng(0).integers(0, 256, size=(size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def picture_file(image: Image.Image | None = None, format: str = "PNG", **options: object) -> bytes:
    """Return a picture as the content of a file."""
    buffer = io.BytesIO()
    (image or picture()).save(buffer, format, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def sixteen_bit() -> bytes:
    """Return a grey PNG of 16 bits a pixel."""
    return picture_file(Image.fromarray(np.arange(0, 65536, 32, dtype=np.uint16).reshape(32, 64)))


def animated_gif() -> bytes:
    """Return a GIF whose first frame is red and whose second is blue."""
    red, blue = (Image.new("RGB", (20, 20), colour) for colour in ("red", "blue"))
    return picture_file(red, "GIF", save_all=True, append_images=[blue])


def rotated_jpeg() -> bytes:
    """Return a JPEG of 50 x 40 pixels whose EXIF says that it is to be shown as 40 x 50."""
    exif = Image.Exif()
    exif[274] = 6
    return picture_file(picture(), "JPEG", exif=exif)


def bomb(width: int = 30_000, height: int = 30_000) -> bytes:
    """Return a few bytes of PNG whose header promises a picture of any size."""
    small = picture_file(Image.new("1", (1, 1)))
    header = small[12:16] + struct.pack(">II", width, height) + small[24:29]  # IHDR's type, size and the rest
    return small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]


def tone(seconds: float = 0.5, *, rate: int = RATE) -> npt.NDArray[np.float32]:
    """Return a sine of 440 Hz."""
    return np.sin(2 * np.pi * 440 * np.arange(round(rate * seconds)) / rate).astype(np.float32) / 2


def sound_file(samples: npt.NDArray[np.float32], *, rate: int = RATE, ending: str = "wav") -> bytes:
    """Return samples as the content of a sound file; wav in 32-bit floats."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=ending.upper(), subtype="FLOAT" if ending == "wav" else None)
    return buffer.getvalue()


def sound_with_nan() -> bytes:
    """Return a sound with one sample that is not a number."""
    samples = tone()
    samples[100] = np.nan
    return sound_file(samples)


def stereo_of_8_khz() -> bytes:
    """Return a telephone's rate in two channels."""
    samples = tone(rate=8_000)
    return sound_file(np.stack([samples, samples / 2], axis=1), rate=8_000)


BAD_ROWS: Mapping[str, Mapping[str, BadRow]] = {
    "image": {
        "plain.png": BadRow(picture_file),
        "grey.png": BadRow(lambda: picture_file(picture("L"))),
        "bilevel.png": BadRow(lambda: picture_file(picture("1"))),
        "palette.png": BadRow(lambda: picture_file(picture("P"))),
        "rgba.png": BadRow(lambda: picture_file(picture("RGBA"))),
        "grey_alpha.png": BadRow(lambda: picture_file(picture("LA"))),
        "sixteen_bit.png": BadRow(sixteen_bit),
        "cmyk.jpg": BadRow(lambda: picture_file(picture("CMYK"), "JPEG")),
        "cmyk.tif": BadRow(lambda: picture_file(picture("CMYK"), "TIFF")),
        "rotated.jpg": BadRow(rotated_jpeg),
        "animated.gif": BadRow(animated_gif),
        "tiny.png": BadRow(lambda: picture_file(picture(size=(1, 1)))),
        "plain.avif": BadRow(lambda: picture_file(picture(), "AVIF")),
        "wrong_ending.png": BadRow(lambda: picture_file(picture(), "WEBP")),
        "truncated.png": BadRow(lambda: picture_file()[:3000], "damaged picture"),
        "truncated.jpg": BadRow(lambda: picture_file(format="JPEG")[:700], "damaged picture"),
        "zero_bytes.jpg": BadRow(lambda: b"", "empty file (0 bytes)"),
        "text.jpg": BadRow(lambda: b"this is a text file\n" * 20, "not a picture in a known format"),
        "bomb.png": BadRow(bomb, "far too many pixels; at most"),
        "large.png": BadRow(lambda: bomb(8_000, 8_000), "8000 x 8000 pixels; at most"),
        "thread.png": BadRow(lambda: picture_file(Image.new("L", (1, 4000))), "more than 100 times"),
    },
    "audio": {
        "plain.wav": BadRow(lambda: sound_file(tone())),
        "plain.flac": BadRow(lambda: sound_file(tone(), ending="flac")),
        "plain.ogg": BadRow(lambda: sound_file(tone(), ending="ogg")),
        "plain.mp3": BadRow(lambda: sound_file(tone(), ending="mp3")),
        "stereo_8_khz.wav": BadRow(stereo_of_8_khz),
        "short.wav": BadRow(lambda: sound_file(tone(0.01))),
        "nan.wav": BadRow(sound_with_nan, "NaN, infinite or immense"),
        "zero_length.wav": BadRow(lambda: sound_file(tone(0)), "zero length"),
        "too_short.wav": BadRow(lambda: sound_file(tone(0.005)), "at least 10 ms"),
        "silent.wav": BadRow(lambda: sound_file(0 * tone()), "silent audio"),
        "zero_bytes.wav": BadRow(lambda: b"", "empty file (0 bytes)"),
        "text.wav": BadRow(lambda: b"this is a text file\n" * 20, "not a sound file"),
        "truncated.wav": BadRow(lambda: sound_file(tone())[:-4000], "cut off: 0.44 s of the sound are there"),
        "truncated.flac": BadRow(lambda: sound_file(tone(), ending="flac")[:3000], "not a sound file"),
    },
    "text": {
        "plain.txt": BadRow(lambda: b"a cat on a mat"),
        "byte_order_mark.txt": BadRow(lambda: "\ufeffa cat on a mat".encode()),
        "accents.txt": BadRow(lambda: "une corneille affamée 🐦".encode()),
        "very_long.txt": BadRow(lambda: b"word " * 200_000),
        "no_spaces.txt": BadRow(lambda: b"x" * 100_000),
        "not_utf8.txt": BadRow(lambda: b"Une corneille affam\xe9e", "not UTF-8"),
        "blank.txt": BadRow(lambda: b" \n\t ", "empty text"),
        "zero_bytes.txt": BadRow(lambda: b"", "empty"),
    },
}


def write_bad_rows(directory: Path, modality: str) -> dict[str, str | None]:
    """Write directory/odd/FILE for a modality; returns, for each path within, the words of its reason or None."""
    (directory / "odd").mkdir(parents=True, exist_ok=True)
    expected = {}
    for name, row in BAD_ROWS[modality].items():
        (directory / "odd" / name).write_bytes(row.make())
        expected[f"odd/{name}"] = row.reason
    return expected
