"""One raw input of each modality, made up: what a logged model is shown with; no row of a user is copied for it."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np

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
    import soundfile

    file = io.BytesIO()
    tone_S = 0.25 * np.sin(2 * np.pi * HERTZ / SAMPLE_RATE * np.arange(SAMPLES))
    soundfile.write(file, tone_S, SAMPLE_RATE, format="WAV")
    return file.getvalue()
