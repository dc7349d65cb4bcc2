"""One raw input of each modality, made up: what a logged model is shown with; no row of a user is copied for it."""

from __future__ import annotations

import io
import math
import struct
import wave
from collections.abc import Callable

SIDE = 32  # pixels
SAMPLE_RATE, SAMPLES, HERTZ = 16_000, 1_600, 440  # a tenth of a second


def raw_example(modality: str) -> bytes | str:
    """Return a picture or a sound as the bytes of a file (png, wav), or a sentence."""
    files: dict[str, Callable[[], bytes]] = {"image": _picture, "audio": _sound}
    return "a short sentence" if modality == "text" else files[modality]()


def _picture() -> bytes:
    from PIL import Image  # training on embeddings needs none of it

    file = io.BytesIO()
    Image.linear_gradient("L").resize((SIDE, SIDE)).convert("RGB").save(file, "png")
    return file.getvalue()


def _sound() -> bytes:
    file = io.BytesIO()
    waves = [round(8_000 * math.sin(2 * math.pi * HERTZ * index / SAMPLE_RATE)) for index in range(SAMPLES)]
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(SAMPLE_RATE)
        sound.writeframes(struct.pack(f"<{SAMPLES}h", *waves))
    return file.getvalue()
