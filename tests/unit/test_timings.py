"""Stages of a step's wall time: nested ones are taken out, other threads are not counted, and the sum is the wall."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from pipelines import timings
from pipelines.timings import Clock, table


def test_stages_add_up_to_the_wall_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(timings, "time", type("Time", (), {"time": staticmethod(lambda: now[0])}))

    def passes(seconds: float) -> None:
        now[0] += seconds

    clock = Clock(since=99.5)
    clock.begin()
    passes(1)
    with clock.timed("train"):
        passes(2)
        with clock.timed("log"):
            passes(3)
        passes(4)
        with pytest.raises(TypeError), clock.timed("read"):
            raise TypeError(passes(5))
    clock.timed("draw")(passes)(6)
    clock.add_workers({"encode": 7})
    clock.add_workers({"encode": 1, "write": 0.5})
    taken = clock.taken()
    seconds = {"start": 0.5, "other": 1, "train": 6, "log": 3, "read": 5, "draw": 6}
    assert {stage: value for stage, value in taken.items() if value} == {
        **seconds,
        "wall": 21.5,
        "workers": {"encode": 8, "write": 0.5},
    }
    lines = table(taken).splitlines()
    assert [line.split()[0] for line in lines] == ["start", "read", "train", "log", "draw", "other", "wall", "workers,"]
    assert lines[2].split() == ["train", "6.0", "s", "28", "%"]
    clock.begin()  # the next step in the process
    assert clock.taken()["wall"] == 0.5


def test_other_threads_are_not_counted() -> None:
    clock = Clock(since=time.time())
    clock.begin()
    found: list[Any] = []

    def elsewhere() -> None:
        with clock.timed("log"):
            found.append(clock.taken()["log"])

    thread = threading.Thread(target=elsewhere)
    with clock.timed("train"):
        thread.start()
        thread.join()
    assert (found, clock.taken()["log"]) == ([0.0], 0.0)
