"""Evaluators of robustness: accuracy on the test rows under built-in corruptions at five severities, as a curve.

Shape legend: N rows.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import soundfile
import torch
from PIL import Image
from tqdm import tqdm

from uml_core.corpora.rows import Row, hash64
from uml_core.errors import InputError, RowError
from uml_core.evaluation.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    Corruption,
    chosen_corruptions,
)
from uml_core.evaluation.evaluator import Results
from uml_core.evaluation.figures import severity_figure
from uml_core.evaluation.run import Codes, EvaluatedRun
from uml_core.figures.drawing import drawn
from uml_core.figures.words import percent

ROWS_AT_ONCE = 128  # raw rows held decoded at a time
BATCH_SIZE = 32
Key = tuple[str, int]  # corruption and severity


@dataclass
class Curve:
    """Hits on the test rows as they are, and of each corruption and severity."""

    rows: int
    clean: float = 0.0
    hits: dict[Key, float] = field(default_factory=dict)

    @property
    def clean_accuracy(self) -> float:
        return self.clean / self.rows

    @property
    def accuracy(self) -> dict[str, list[float]]:
        """Accuracy by corruption, at severities 1 to 5."""
        names = dict.fromkeys(name for name, _ in self.hits)
        return {name: [self.hits[name, severity] / self.rows for severity in SEVERITIES] for name in names}


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
    positions = _tested_rows(run)
    rows, labels = _raw_rows(run, positions), run.labels("test")[positions]
    test, curve = _RawTest(run, _damaged_picture if modality == "image" else _damaged_sound), Curve(len(rows))
    for start in tqdm(range(0, len(rows), ROWS_AT_ONCE), desc="corruptions", unit="block", disable=None):
        block = slice(start, start + ROWS_AT_ONCE)
        test.measure(rows[block], labels[block], corruptions, curve)
    yield from _results(curve, run)


class _RawTest:
    """Reads raw rows, damages them, encodes them with the run's own target model and counts hits."""

    def __init__(self, run: EvaluatedRun, damaged: Callable[..., Any]) -> None:
        self._classes, self._seed, self._damaged = run.classes, run.experiment.seed, damaged
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._predictor = run.objective.predictor()
        self._encoder = self._predictor.build_encoder()
        self._predictor.load_encoder(self._encoder, device=device)

    def measure(
        self, rows: Sequence[Row], labels_N: Codes, corruptions: Sequence[Corruption[Any]], curve: Curve
    ) -> None:
        """Add the hits on some rows to a curve."""
        content = [row.read() for row in rows]
        decoded = [self._encoder.decode(raw) for raw in content]
        curve.clean += self._hits(decoded, labels_N)
        for corruption, severity in itertools.product(corruptions, SEVERITIES):
            values = []
            for row, raw, ready in zip(rows, content, decoded, strict=True):
                damage = partial(corruption, severity=severity, seed=self._seed, row_id=row.id)
                values.append(self._damaged(self._encoder, raw, ready, damage))
            key = corruption.name, severity
            curve.hits[key] = curve.hits.get(key, 0.0) + self._hits(values, labels_N)

    def _hits(self, values: Sequence[Any], labels_N: Codes) -> float:
        readable = [position for position, value in enumerate(values) if value is not None]
        if not readable:
            return 0.0
        kept = [values[position] for position in readable]
        names = self._predictor.classify_decoded(self._encoder, kept, batch_size=BATCH_SIZE).classes
        return float(
            sum(name == self._classes[labels_N[position]] for name, position in zip(names, readable, strict=True))
        )


def _tested_rows(run: EvaluatedRun) -> Any:
    """Which test rows are taken: all, or a sample that depends on ids alone."""
    if not run.has_test:
        raise InputError(f"target {run.target} has no test split to corrupt; set data.test_fraction, or add one")
    ids, limit = run.ids("test"), run.experiment.evaluation.corruption_rows
    if len(ids) <= limit:
        return np.arange(len(ids))
    return np.sort(np.argsort([hash64("corruption", row_id) for row_id in ids], kind="stable")[:limit])


def _raw_rows(run: EvaluatedRun, positions: Any) -> list[Row]:
    rows, ids = run.raw(), run.ids("test")
    gone = [ids[position] for position in positions if ids[position] not in rows]
    if gone:
        raise InputError(
            f"evaluator corruptions reads the raw rows of {run.target}, and {len(gone)} of {len(positions)} can no "
            f"longer be found, first {gone[0]}; put the corpus back, or leave it out"
        )
    return [rows[ids[position]] for position in positions]


Damage = Callable[[Any], Any]


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
    samples_SC, rate = soundfile.read(io.BytesIO(raw), dtype="float32", always_2d=True)
    buffer = io.BytesIO()
    soundfile.write(buffer, damage(samples_SC.mean(axis=1, dtype=np.float32)), rate, format="WAV", subtype="FLOAT")
    try:
        return encoder.decode(buffer.getvalue())
    except RowError:
        return None


def _results(curve: Curve, run: EvaluatedRun) -> Iterator[tuple[str, Any]]:
    prefix = "corruption"
    means = {name: float(np.mean(values)) for name, values in curve.accuracy.items()}
    mean = float(np.mean(list(means.values())))
    yield f"{prefix}/rows", float(curve.rows)
    yield f"{prefix}/clean_accuracy", curve.clean_accuracy
    yield f"{prefix}/accuracy", mean
    for name, values in curve.accuracy.items():
        yield f"{prefix}/{name}/accuracy", means[name]
        yield from ((f"{prefix}/{name}/{severity}/accuracy", value) for severity, value in enumerate(values, start=1))
    frame = pd.DataFrame({0: curve.clean_accuracy, **dict(enumerate(zip(*curve.accuracy.values(), strict=True), 1))})
    frame.index = pd.Index(list(curve.accuracy), name="corruption \\ severity")
    yield f"{prefix}/accuracy.csv", str(frame.to_csv(float_format="%.4f"))
    words = (
        f"Accuracy on {curve.rows} test rows of {run.target} by severity; {percent(curve.clean_accuracy)} % undamaged, "
        f"{percent(mean)} % over all corruptions and severities."
    )
    alternative = words + " Means: " + "; ".join(f"{name} {percent(value)} %" for name, value in means.items()) + "."
    figure = severity_figure(curve.accuracy, clean=curve.clean_accuracy, chance=1 / len(run.classes))
    yield f"{prefix}/curve", drawn(f"{prefix}_curve", figure, words, alternative)
