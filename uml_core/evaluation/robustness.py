"""Evaluators of robustness: accuracy on the test rows under built-in corruptions at five severities, as a curve.

Shape legend: N rows.
"""

from __future__ import annotations

import io
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
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
from uml_core.evaluation.corruptions import CORRUPTIONS, SEVERITIES, chosen_corruptions
from uml_core.evaluation.evaluator import Results
from uml_core.evaluation.figures import severity_figure
from uml_core.evaluation.run import EvaluatedRun
from uml_core.figures.drawing import drawn
from uml_core.figures.words import percent

ROWS_AT_ONCE = 128  # raw rows held decoded at a time
BATCH_SIZE = 32
Damage = Callable[[Any], Any]


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
    rows, ids = run.raw(), run.ids("test")
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
    samples_SC, rate = soundfile.read(io.BytesIO(raw), dtype="float32", always_2d=True)
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
