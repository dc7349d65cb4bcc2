"""Corruptions of pictures and sounds at five severities, and accuracy under them as a curve: what a user without a
shifted test set tests with.

In: one row and a severity from 1 to 5. Out: the row, damaged. What is drawn at random depends on (seed, row id) alone,
so a row is damaged the same way in every run and, scaled, at every severity.

The sets are our own, built on Pillow, numpy and scipy; their strengths are those below. Numbers must not be compared
with ImageNet-C's or any other benchmark's.

Shape legend: H height, W width, S samples.
"""

from __future__ import annotations

import io
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import soundfile
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageEnhance, ImageFilter
from scipy import signal
from tqdm import tqdm

from uml_core.corpora.rows import Row, hash64
from uml_core.errors import InputError, RowError, listing, nearest
from uml_core.evaluation.run import EvaluatedRun, Results
from uml_core.figures.drawing import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    drawn,
    house_style,
    printable,
    stacked_panels,
)
from uml_core.figures.words import percent

Pixels = npt.NDArray[np.uint8]  # (H, W, 3)
Samples = npt.NDArray[np.float32]  # (S,), full scale 1
SEVERITIES = (1, 2, 3, 4, 5)
REFERENCE_SIDE = 224  # pixels: lengths below are for a picture of this side, and scale with it
ROWS_AT_ONCE = 128  # raw rows held decoded at a time
BATCH_SIZE = 32
Damage = Callable[[Any], Any]
LOOKS = (
    *((BLUE, "o", "-"), (VERMILION, "s", "-"), (GREEN, "^", "-"), (ORANGE, "D", "-"), (PURPLE, "v", "-")),
    *((SKY, "P", "-"), (BLUE, "X", "--"), (VERMILION, "<", "--"), (GREEN, ">", "--"), (ORANGE, "h", "--")),
)


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


def _picture_noise(picture_HW3: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    noisy_HW3 = picture_HW3 + 255 * strength * rng.standard_normal(picture_HW3.shape, dtype=np.float32)
    pixels_HW3: Pixels = np.rint(noisy_HW3).clip(0, 255).astype(np.uint8)
    return pixels_HW3


def _salt_and_pepper(picture_HW3: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    lot_HW, damaged = rng.random(picture_HW3.shape[:2]), picture_HW3.copy()
    damaged[lot_HW < strength / 2] = 0
    damaged[lot_HW > 1 - strength / 2] = 255
    return damaged


def _blur(picture_HW3: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    radius = strength * float(min(picture_HW3.shape[:2])) / REFERENCE_SIDE
    return np.asarray(Image.fromarray(picture_HW3).filter(ImageFilter.GaussianBlur(radius)))


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


# ---- the evaluator


def evaluate_corruptions(run: EvaluatedRun) -> Results:
    """Damage the raw test rows (pictures or sounds), encode them again and predict: one accuracy a severity.

    Runs only when it is asked for: it encodes each row about forty times. Pictures are damaged after the encoder's
    resizing and cropping. At most `evaluation.corruption_rows` rows are taken, the same ones in every run; a damaged
    row the encoder cannot read counts as wrong. Compare runs on the same target, encoder, rows and seed only, and never
    with published corruption benchmarks, whose damage is another.
    """
    modality = run.experiment.corpora[run.target].modality
    if modality not in CORRUPTIONS:
        raise InputError(
            f"evaluator corruptions damages pictures and sounds, and target {run.target} is of modality {modality}; "
            "leave it out"
        )
    corruptions = chosen_corruptions(run.experiment.evaluation.corruptions, modality)
    damaged: Callable[..., Any] = _damaged_picture if modality == "image" else _damaged_sound
    positions = _tested_rows(run)
    rows, names = _raw_rows(run, positions), [run.classes[code] for code in run.labels("test")[positions]]
    predictor = run.objective.predictor()
    encoder = predictor.build_encoder()
    predictor.load_encoder(encoder, device="cuda" if torch.cuda.is_available() else "cpu")

    def count_hits(values: Sequence[Any], true: Sequence[str]) -> int:
        readable = [(value, name) for value, name in zip(values, true, strict=True) if value is not None]
        if not readable:
            return 0
        found = predictor.classify_decoded(encoder, [value for value, _ in readable], batch_size=BATCH_SIZE).classes
        return sum(name == expected for name, (_, expected) in zip(found, readable, strict=True))

    clean, hits = 0, Counter[tuple[str, int]]()
    for start in tqdm(range(0, len(rows), ROWS_AT_ONCE), desc="corruptions", unit="block", disable=None):
        block, true = rows[start : start + ROWS_AT_ONCE], names[start : start + ROWS_AT_ONCE]
        content = [row.read() for row in block]
        decoded = [encoder.decode(raw) for raw in content]
        clean += count_hits(decoded, true)
        for corruption, severity in itertools.product(corruptions, SEVERITIES):
            damage = partial(corruption, severity=severity, seed=run.experiment.seed)
            values = [
                damaged(encoder, raw, ready, partial(damage, row_id=row.id))
                for row, raw, ready in zip(block, content, decoded, strict=True)
            ]
            hits[corruption.name, severity] += count_hits(values, true)
    accuracy = {each.name: [hits[each.name, severity] / len(rows) for severity in SEVERITIES] for each in corruptions}
    yield from _results(run, len(rows), clean / len(rows), accuracy)


def _tested_rows(run: EvaluatedRun) -> Any:
    """Which test rows are taken: all, or a sample that depends on ids alone."""
    if not run.has_test:
        raise InputError(f"target {run.target} has no test split to corrupt; set data.test_fraction, or add one")
    ids, limit = run.ids("test"), run.experiment.evaluation.corruption_rows
    if len(ids) <= limit:
        return np.arange(len(ids))
    return np.sort(np.argsort([hash64("corruption", row_id) for row_id in ids], kind="stable")[:limit])


def _raw_rows(run: EvaluatedRun, positions: Any) -> list[Row]:
    rows, ids = run.raw_rows(run.target), run.ids("test")
    gone = [ids[position] for position in positions if ids[position] not in rows]
    if gone:
        raise InputError(
            f"evaluator corruptions reads the raw rows of {run.target}, and {len(gone)} of {len(positions)} can no "
            f"longer be found, first {gone[0]}; put the corpus back, or leave it out"
        )
    return [rows[ids[position]] for position in positions]


def _damaged_picture(encoder: Any, raw: bytes, decoded: Any, damage: Damage) -> Any:
    """Damage a picture as the encoder is given it; where that is no picture any more, the picture in its file."""
    if isinstance(decoded, np.ndarray) and decoded.dtype == np.uint8 and decoded.ndim == 3:
        return damage(decoded)
    from uml_core.encoders.pictures import open_picture

    buffer = io.BytesIO()
    Image.fromarray(damage(np.asarray(open_picture(raw)))).save(buffer, format="PNG")
    return encoder.decode(buffer.getvalue())


def _damaged_sound(encoder: Any, raw: bytes, decoded: Any, damage: Damage) -> Any:
    """Damage a sound in its file, one channel; None where nothing that can be read is left of it."""
    from uml_core.encoders.audio.packaged_audio import read_samples

    try:
        samples_SC, rate = soundfile.read(io.BytesIO(raw), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError:  # m4a or aac
        samples_SC, rate = read_samples(raw, encoder.config.max_seconds)
    buffer = io.BytesIO()
    soundfile.write(buffer, damage(samples_SC.mean(axis=1, dtype=np.float32)), rate, format="WAV", subtype="FLOAT")
    try:
        return encoder.decode(buffer.getvalue())
    except RowError:
        return None


def _results(run: EvaluatedRun, num_rows: int, clean: float, accuracy: dict[str, list[float]]) -> Results:
    means = {name: float(np.mean(values)) for name, values in accuracy.items()}
    mean = float(np.mean(list(means.values())))
    yield "corruption/rows", float(num_rows)
    yield "corruption/clean_accuracy", clean
    yield "corruption/accuracy", mean
    for name, values in accuracy.items():
        yield f"corruption/{name}/accuracy", means[name]
        yield from ((f"corruption/{name}/{severity}/accuracy", value) for severity, value in enumerate(values, start=1))
    frame = pd.DataFrame.from_dict(accuracy, orient="index", columns=SEVERITIES)
    frame.insert(0, 0, clean)
    yield "corruption/accuracy.csv", frame.to_csv(float_format="%.4f", index_label="corruption \\ severity")
    words = (
        f"Accuracy on {num_rows} test rows of {run.target} by severity; {percent(clean)} % undamaged, "
        f"{percent(mean)} % over all corruptions and severities."
    )
    alternative = words + " Means: " + "; ".join(f"{name} {percent(value)} %" for name, value in means.items()) + "."
    figure = severity_figure(accuracy, clean=clean, chance=1 / len(run.classes))
    yield "corruption/curve", drawn("corruption_curve", figure, words, alternative)


def severity_figure(accuracy: Mapping[str, Sequence[float]], *, clean: float, chance: float) -> Figure:
    """Draw accuracy in percent over severities 0 (undamaged) to 5, and the mean over corruptions."""
    with house_style():
        figure, (axis,) = stacked_panels([4.2])
        severities = range(len(next(iter(accuracy.values()))) + 1)
        for index, (name, values) in enumerate(accuracy.items()):
            colour, marker, line = LOOKS[index % len(LOOKS)]
            label = printable(name.replace("_", " "))
            shown = 100 * np.array([clean, *values])
            axis.plot(severities, shown, color=colour, marker=marker, linestyle=line, markersize=5, label=label)
        mean = 100 * np.array([clean, *np.mean(list(accuracy.values()), axis=0)])
        axis.plot(severities, mean, color=BLACK, linewidth=2.6, label="mean")
        axis.axhline(100 * chance, color=GREY, linestyle=":", label="chance")
        axis.set_ylim(0, min(100, 115 * max(clean, *map(max, accuracy.values()))))
        axis.set_xticks(list(severities), ["none", *(str(each) for each in severities[1:])])
        axis.set_xlabel("severity")
        axis.set_ylabel("accuracy (%)")
        figure.legend(loc="outside lower center", ncols=3)
    return figure
