"""Corruptions: how strong they are, that a row is damaged the same way every time, and the curve they give."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.conftest import table
from uml_core.config import parse_experiment
from uml_core.data.training_data import build_training_data
from uml_core.errors import InputError
from uml_core.evaluation.corruptions import (
    AUDIO_CORRUPTIONS,
    IMAGE_CORRUPTIONS,
    SEVERITIES,
    Corruption,
    _damaged_sound,
    _tested_rows,
    chosen_corruptions,
    evaluate_corruptions,
)
from uml_core.evaluation.run import EvaluatedRun
from uml_core.training.run import TrainingRun

RNG = np.random.default_rng(0)
WALKS = RNG.normal(size=(2, 64, 3)).cumsum(axis=1)
PICTURE = (128 + 8 * (WALKS[0][:, None] + WALKS[1][None] + RNG.normal(size=(64, 64, 3)))).clip(0, 255).astype(np.uint8)
SOUND = (0.1 * RNG.normal(size=8000)).astype(np.float32)


def distance(corruption: Corruption, value: Any, severity: int) -> float:
    damaged = corruption(value, severity, seed=0, row_id="a")
    assert damaged.shape == value.shape
    assert damaged.dtype == value.dtype
    return float(np.square(damaged.astype(float) - value.astype(float)).mean())


@pytest.mark.parametrize(
    ("corruption", "value"),
    [
        *((each, PICTURE) for each in IMAGE_CORRUPTIONS),
        *((each, SOUND) for each in AUDIO_CORRUPTIONS),
    ],
    ids=lambda value: value.name if isinstance(value, Corruption) else "",
)
def test_severity_grows_and_a_row_is_damaged_the_same_way_every_time(corruption: Corruption, value: Any) -> None:
    distances = [distance(corruption, value, severity) for severity in SEVERITIES]
    assert distances[0] > 0
    assert distances[-1] > 1.5 * distances[0]
    assert all(after >= 0.98 * before for before, after in itertools.pairwise(distances)), distances
    once, again = (corruption(value, 3, seed=1, row_id="b") for _ in range(2))
    assert np.array_equal(once, again)


def test_other_rows_and_seeds_are_damaged_otherwise() -> None:
    noise = IMAGE_CORRUPTIONS[0]
    one = noise(PICTURE, 2, seed=0, row_id="a")
    assert not np.array_equal(one, noise(PICTURE, 2, seed=0, row_id="b"))
    assert not np.array_equal(one, noise(PICTURE, 2, seed=1, row_id="a"))


def by_name(corruptions: tuple[Corruption, ...], name: str) -> Corruption:
    return next(each for each in corruptions if each.name == name)


def test_strengths_are_what_they_say() -> None:
    noisy = by_name(AUDIO_CORRUPTIONS, "white_noise")(SOUND, 4, seed=0, row_id="a")
    ratio = np.square(SOUND).mean() / np.square(noisy - SOUND).mean()
    assert 10 * np.log10(ratio) == pytest.approx(0, abs=0.3)
    quiet = by_name(AUDIO_CORRUPTIONS, "gain")(SOUND, 1, seed=0, row_id="a")
    assert np.abs(quiet).max() / np.abs(SOUND).max() == pytest.approx(10 ** (-6 / 20), rel=1e-5)
    masked = by_name(AUDIO_CORRUPTIONS, "time_mask")(SOUND + 1, 4, seed=0, row_id="a")
    assert (masked == 0).mean() == 0.5
    hidden = by_name(IMAGE_CORRUPTIONS, "occlusion")(PICTURE // 2, 5, seed=0, row_id="a")
    assert (hidden == 127).mean() == pytest.approx(0.5, abs=0.05)


def test_low_pass_keeps_what_is_low() -> None:
    time = np.arange(8000) / 8000
    low, high = (np.sin(2 * np.pi * hertz * time).astype(np.float32) for hertz in (100, 3500))
    passed = by_name(AUDIO_CORRUPTIONS, "low_pass")(low + high, 4, seed=0, row_id="a")  # below 600 Hz
    assert np.square(passed - low).mean() < 0.05
    assert np.square(passed).mean() == pytest.approx(np.square(low).mean(), rel=0.05)


def test_an_unknown_corruption_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'pixelate'"):
        chosen_corruptions(("pixalate",), "image")
    assert chosen_corruptions((), "image") == list(IMAGE_CORRUPTIONS)


def trained(**changes: Any) -> EvaluatedRun:
    labels = [f"class-{code}" for code in range(4) for _ in range(30)]
    splits = (["train"] * 8 + ["val"] * 4 + ["test"] * 18) * 4
    rows = np.repeat(3 * np.random.default_rng(1).normal(size=(4, 10)), 30, axis=0)
    rows += np.random.default_rng(2).normal(size=rows.shape)
    corpora = {"target": {"modality": "vector", "format": "embeddings", "path": "x"}}
    tree = {"name": "x", "store": "store", "target": "target", "corpora": corpora, "optim": {"lr": 0.05}}
    experiment = parse_experiment({**tree, "train": {"max_steps": 40, "eval_every": 20}}).override(changes)
    run = TrainingRun(experiment, build_training_data(experiment, {"target": table(rows, labels, splits)}))
    for _ in run.evaluations():
        pass
    run.load_best()
    ids = tuple(f"row-{place}" for place in range(len(labels)))
    return EvaluatedRun(experiment, run.data, run.objective, ids=lambda corpus: ids)


def test_a_sample_of_rows_is_the_same_in_every_run() -> None:
    few, again, all_rows = (_tested_rows(trained(**{"evaluation.corruption_rows": rows})) for rows in (20, 20, 1000))
    assert len(few) == 20
    assert few.tolist() == again.tolist() == sorted(few)
    assert all_rows.tolist() == list(range(72))


def test_a_target_without_raw_rows_is_refused() -> None:
    with pytest.raises(InputError, match="is of modality vector; leave it out"):
        list(evaluate_corruptions(trained()))


def test_a_damaged_sound_is_decoded_as_its_file(tmp_path: Path) -> None:
    from uml_core.config import EncoderConfig
    from uml_core.encoders.audio.packaged_audio import LogMelStatistics

    encoder, buffer = LogMelStatistics(EncoderConfig(source="package", name="logmel")), io.BytesIO()
    soundfile.write(buffer, np.stack([SOUND, SOUND], axis=1), 16_000, format="WAV", subtype="FLOAT")
    raw = buffer.getvalue()
    same = _damaged_sound(encoder, raw, None, lambda samples: samples)
    assert same == pytest.approx(encoder.decode(raw))
    assert _damaged_sound(encoder, raw, None, np.zeros_like) is None, "silence cannot be embedded: it counts as wrong"


def test_names_of_another_kind_are_left_out_unless_nothing_is_left() -> None:
    names = ("blur", "gaussian_noise", "time_mask")
    assert [each.name for each in chosen_corruptions(names, "audio")] == ["time_mask"]
    with pytest.raises(InputError, match="none of audio; those are white_noise"):
        chosen_corruptions(("blur",), "audio")
