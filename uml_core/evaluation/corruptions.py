"""Corruptions of pictures and sounds at five severities: what a user without a shifted test set tests with.

In: one row and a severity from 1 to 5. Out: the row, damaged. What is drawn at random depends on (seed, row id) alone,
so a row is damaged the same way in every run and, scaled, at every severity.

The sets are our own, built on Pillow, numpy and scipy; their strengths are those below. Numbers must not be compared
with ImageNet-C's or any other benchmark's.

Shape legend: H height, W width, S samples.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageFilter
from scipy import signal

from uml_core.corpora.rows import hash64
from uml_core.errors import InputError, listing, nearest

Pixels = npt.NDArray[np.uint8]  # (H, W, 3)
Samples = npt.NDArray[np.float32]  # (S,), full scale 1
SEVERITIES = (1, 2, 3, 4, 5)
REFERENCE_SIDE = 224  # pixels: lengths below are for a picture of this side, and scale with it


@dataclass(frozen=True)
class Corruption:
    """One kind of damage: its strength at the five severities, and how it is done."""

    name: str
    strengths: tuple[float, float, float, float, float]
    apply: Callable[[Any, float, np.random.Generator], Any]

    def __call__(self, value: Any, severity: int, *, seed: int, row_id: str) -> Any:
        """The damaged value; the same for the same (seed, row id)."""
        rng = np.random.default_rng([seed % 2**32, hash64(self.name, row_id)])
        return self.apply(value, self.strengths[severity - 1], rng)


# ---- pictures


def _bytes_of(values: npt.NDArray[Any]) -> Pixels:
    pixels: Pixels = np.rint(values).clip(0, 255).astype(np.uint8)
    return pixels


def _lengths(picture_HW3: Pixels, pixels: float) -> float:
    return pixels * float(min(picture_HW3.shape[:2])) / REFERENCE_SIDE


def _picture_noise(picture_HW3: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    return _bytes_of(picture_HW3 + 255 * strength * rng.standard_normal(picture_HW3.shape, dtype=np.float32))


def _salt_and_pepper(picture_HW3: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    lot_HW, damaged = rng.random(picture_HW3.shape[:2]), picture_HW3.copy()
    damaged[lot_HW < strength / 2] = 0
    damaged[lot_HW > 1 - strength / 2] = 255
    return damaged


def _blur(picture_HW3: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    blurred = Image.fromarray(picture_HW3).filter(ImageFilter.GaussianBlur(_lengths(picture_HW3, strength)))
    return np.asarray(blurred)


def _brightness(picture_HW3: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    return np.asarray(ImageEnhance.Brightness(Image.fromarray(picture_HW3)).enhance(strength))


def _contrast(picture_HW3: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    return np.asarray(ImageEnhance.Contrast(Image.fromarray(picture_HW3)).enhance(strength))


def _jpeg(picture_HW3: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    buffer = io.BytesIO()
    Image.fromarray(picture_HW3).save(buffer, format="JPEG", quality=int(strength))
    with Image.open(buffer) as picture:
        return np.asarray(picture.convert("RGB"))


def _pixelate(picture_HW3: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    picture = Image.fromarray(picture_HW3)
    size = max(1, round(picture.width * strength)), max(1, round(picture.height * strength))
    return np.asarray(picture.resize(size, Image.Resampling.BOX).resize(picture.size, Image.Resampling.NEAREST))


def _occlusion(picture_HW3: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    height, width, _ = picture_HW3.shape
    tall, wide = round(height * strength**0.5), round(width * strength**0.5)
    down, across = rng.random(2)
    top, left = round(down * (height - tall)), round(across * (width - wide))
    damaged = picture_HW3.copy()
    damaged[top : top + tall, left : left + wide] = 127
    return damaged


IMAGE_CORRUPTIONS = (
    Corruption("gaussian_noise", (0.04, 0.08, 0.14, 0.2, 0.3), _picture_noise),  # standard deviation, of full scale
    Corruption("salt_and_pepper", (0.01, 0.03, 0.08, 0.15, 0.25), _salt_and_pepper),  # share of pixels
    Corruption("blur", (1, 2, 3, 4.5, 6), _blur),  # standard deviation in pixels
    Corruption("brighten", (1.2, 1.5, 1.8, 2.2, 2.8), _brightness),  # factor
    Corruption("darken", (0.7, 0.5, 0.35, 0.2, 0.1), _brightness),  # factor
    Corruption("contrast", (0.7, 0.5, 0.35, 0.2, 0.1), _contrast),  # factor on the distance from the mean grey
    Corruption("jpeg", (40, 25, 15, 9, 5), _jpeg),  # quality
    Corruption("pixelate", (0.5, 0.35, 0.25, 0.15, 0.1), _pixelate),  # factor on the number of pixels a side
    Corruption("occlusion", (0.05, 0.1, 0.2, 0.35, 0.5), _occlusion),  # share of the picture under a grey square
)


# ---- sounds


def _sound_noise(samples_S: Samples, strength: float, rng: np.random.Generator) -> Samples:
    power = float(np.mean(np.square(samples_S, dtype=np.float64)))
    deviation = np.sqrt(power / 10 ** (strength / 10))
    noisy: Samples = samples_S + np.float32(deviation) * rng.standard_normal(samples_S.shape, dtype=np.float32)
    return noisy


def _low_pass(samples_S: Samples, strength: float, rng: np.random.Generator) -> Samples:
    sections = signal.butter(4, strength, output="sos")
    padding = min(3 * (2 * len(sections) + 1), len(samples_S) - 1)
    return np.asarray(signal.sosfiltfilt(sections, samples_S, padlen=padding), dtype=np.float32)


def _clipping(samples_S: Samples, strength: float, rng: np.random.Generator) -> Samples:
    limit = float(np.abs(samples_S).max()) * strength
    return samples_S.clip(-limit, limit)


def _gain(samples_S: Samples, strength: float, rng: np.random.Generator) -> Samples:
    quieter: Samples = samples_S * np.float32(10 ** (strength / 20))
    return quieter


def _time_mask(samples_S: Samples, strength: float, rng: np.random.Generator) -> Samples:
    length, damaged = round(len(samples_S) * strength), samples_S.copy()
    start = round(rng.random() * (len(samples_S) - length))
    damaged[start : start + length] = 0
    return damaged


AUDIO_CORRUPTIONS = (
    Corruption("white_noise", (20, 12, 6, 0, -6), _sound_noise),  # signal to noise ratio in dB
    Corruption("low_pass", (0.5, 0.35, 0.25, 0.15, 0.08), _low_pass),  # cut-off as a share of half the sample rate
    Corruption("clipping", (0.5, 0.3, 0.2, 0.1, 0.05), _clipping),  # limit as a share of the loudest sample
    Corruption("gain", (-6, -12, -18, -24, -36), _gain),  # dB
    Corruption("time_mask", (0.1, 0.2, 0.35, 0.5, 0.7), _time_mask),  # share of the clip that falls silent
)

CORRUPTIONS = {"image": IMAGE_CORRUPTIONS, "audio": AUDIO_CORRUPTIONS}


def chosen_corruptions(names: Sequence[str], modality: str) -> list[Corruption]:
    """Those of a modality that are named; every one for no names.

    Raises:
        InputError: a name is no corruption of anything, or none of them is one of the modality.
    """
    known, every = CORRUPTIONS[modality], {each.name for table in CORRUPTIONS.values() for each in table}
    own = listing((corruption.name for corruption in known), limit=20)
    for name in names:
        if name not in every:
            raise InputError(
                f"evaluation.corruptions names '{name}'{nearest(name, every)}; those of {modality} are {own}"
            )
    chosen = [corruption for corruption in known if not names or corruption.name in names]
    if not chosen:
        raise InputError(f"evaluation.corruptions is {listing(names)}, none of {modality}; those are {own}")
    return chosen
