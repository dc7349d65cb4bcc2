"""Pictures read ahead by Ray Data: in the order of the steps, each once, and without taking training's core."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import ray.train
from ray.data import ExecutionOptions

from pipelines.train.picture_stream import CHUNK_ROWS, PAUSE_S, PictureStream, Unhurried, decoders
from uml_core.corpora.rows import Row

BATCH, CHUNKS = 32, 20


@dataclass
class Numbered:
    """Decodes a sentence that is a number into a picture full of it, and leaves a byte in a file for each."""

    log: Path

    def array_of(self, raw: Any) -> np.ndarray:
        with self.log.open("ab") as file:
            file.write(b".")
        return np.full((32, 32, 3), int(raw), dtype=np.uint8)

    def example(self) -> np.ndarray:
        return np.zeros((32, 32, 3), dtype=np.uint8)


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


def count_rounds(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return a list that grows by one a round of Ray Data's loop."""
    rounds: list[object] = []
    rest = Unhurried.on_execution_step

    def counted(callback: Unhurried, executor: object) -> None:
        rounds.append(executor)
        rest(callback, executor)

    monkeypatch.setattr(Unhurried, "on_execution_step", counted)
    return rounds


@pytest.mark.usefixtures("ray_cluster")
def test_reading_ahead_takes_no_core_of_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    workers(monkeypatch, cpus=2, world_size=1)
    context = ray.data.DataContext.get_current()  # of this process, which goes on to other tests
    for name, value in (("execution_options", ExecutionOptions()), ("custom_execution_callback_classes", [])):
        monkeypatch.setattr(context, name, value)
    monkeypatch.setattr(context, "enable_progress_bars", False)
    raw = tuple(Row(str(number), None, "train", text=str(number)) for number in range(200))
    steps = [np.random.default_rng(step).integers(0, 200, BATCH) for step in range(CHUNKS * CHUNK_ROWS // BATCH)]
    encoder = Numbered(tmp_path / "log")
    stream = PictureStream(iter(steps), raw, encoder)  # type: ignore[arg-type]
    for rows in steps[:10]:
        assert (stream(rows)[:, 0, 0, 0] == rows).all()
    for _ in range(100):
        if encoder.log.stat().st_size == CHUNKS * CHUNK_ROWS:
            break
        time.sleep(0.2)
    rounds = count_rounds(monkeypatch)  # all is decoded and lies ready: Ray Data has nothing to wait for
    before_s = time.monotonic()
    time.sleep(4 * PAUSE_S)
    assert 0 < len(rounds) <= (time.monotonic() - before_s) / PAUSE_S + 1, "Ray Data's loop spins"
    for rows in steps[10:]:
        assert (stream(rows)[:, 0, 0, 0] == rows).all()
    assert encoder.log.stat().st_size == CHUNKS * CHUNK_ROWS
