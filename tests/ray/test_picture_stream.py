"""Pictures decoded ahead by actors: in the order of the steps, each once, and no further ahead than is allowed."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import ray.train

from pipelines.train import picture_stream
from pipelines.train.picture_stream import CHUNK_ROWS, CHUNKS_AHEAD, PictureStream, decoders
from tests.fine_tuning_runs import experiment_of, tables_of, write_corpus
from uml_core.corpora.rows import Row
from uml_core.errors import InputError
from uml_core.training.fine_tuning import target_encoder

BATCH, CHUNKS = 32, 8


def workers(monkeypatch: pytest.MonkeyPatch, *, cpus: int, world_size: int) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": float(cpus)})
    monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(get_world_size=lambda: world_size))


@pytest.mark.parametrize(
    ("cpus", "world_size", "expected"),
    [(2, 1, (1, 1)), (8, 1, (7, 1)), (4, 3, (1, 0.33)), (5, 2, (2, 0.75)), (2, 2, (1, 0))],
)
def test_decoders_take_the_cpus_that_workers_leave(
    monkeypatch: pytest.MonkeyPatch, cpus: int, world_size: int, expected: tuple[int, float]
) -> None:
    workers(monkeypatch, cpus=cpus, world_size=world_size)
    assert decoders() == expected


class NumberedDecoder:
    """Decodes a sentence that is a number into a picture full of it, and leaves a byte in a file for each."""

    def __init__(self, raw: Any, log: str, modality: str) -> None:
        self._raw, self._log = raw, Path(log)

    def decode(self, rows: np.ndarray) -> np.ndarray:
        with self._log.open("ab") as file:
            file.write(b"." * len(rows))
        return np.stack([np.full((32, 32, 3), int(self._raw[row].read()), dtype=np.uint8) for row in rows])


@pytest.mark.usefixtures("ray_cluster")
def test_pictures_come_in_order_each_decoded_once_and_not_too_far_ahead(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    workers(monkeypatch, cpus=2, world_size=1)
    raw = tuple(Row(str(number), None, "train", text=str(number)) for number in range(200))
    steps = [np.random.default_rng(step).integers(0, 200, BATCH) for step in range(CHUNKS * CHUNK_ROWS // BATCH)]
    log, picture = tmp_path / "log", np.zeros((32, 32, 3), dtype=np.uint8)
    encoder: Any = SimpleNamespace(config=str(log), modality="image", example=lambda: picture)
    monkeypatch.setattr(picture_stream, "Decoder", NumberedDecoder)
    stream = PictureStream(iter(steps), raw, encoder)
    assert (stream(steps[0])[:, 0, 0, 0] == steps[0]).all()
    ahead = CHUNKS_AHEAD * CHUNK_ROWS
    deadline = time.monotonic() + 60
    while (decoded := log.stat().st_size) < ahead and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)  # in which it would go on
    assert decoded == log.stat().st_size == ahead
    for rows in steps[1:]:
        assert (stream(rows)[:, 0, 0, 0] == rows).all()
    assert log.stat().st_size == CHUNKS * CHUNK_ROWS


@pytest.mark.usefixtures("ray_cluster")
def test_a_damaged_picture_is_the_users_mistake_when_training_comes_to_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    workers(monkeypatch, cpus=2, world_size=1)
    experiment = experiment_of(write_corpus(tmp_path / "pictures"))
    _, raw = tables_of(experiment)
    (tmp_path / "x.png").write_bytes(b"nothing")
    damaged = [*raw[:300], Row("x.png", "circle", "train", path=str(tmp_path / "x.png"))]
    good = np.arange(CHUNK_ROWS) % (len(damaged) - 1)
    stream = PictureStream(iter([good, np.array([len(damaged) - 1])]), damaged, target_encoder(experiment))
    assert stream(good).shape == (CHUNK_ROWS, 32, 32, 3)
    with pytest.raises(InputError, match=r"^picture x.png was embedded and can no longer be read"):
        stream(np.array([len(damaged) - 1]))
