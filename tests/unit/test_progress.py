"""The line of a step on a terminal and in a log."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import termios
import threading
import time

import pytest

from pipelines import progress
from pipelines.progress import StepProgress


def run_step() -> None:
    with StepProgress("starting Ray") as shown:
        time.sleep(0.03)
        shown.counts("encoding pictures", 4)
        for _ in range(4):
            time.sleep(0.02)
            shown.adds()
        with StepProgress("reading"):
            time.sleep(0.03)
        shown.says("writing")


def test_a_terminal_shows_what_is_waited_for_and_what_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "REFRESH_S", 0.01)
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    read: list[bytes] = []

    def follow() -> None:
        with contextlib.suppress(OSError):  # once the other end is closed
            while True:
                read.append(os.read(ours, 1 << 12))

    reader = threading.Thread(target=follow)
    reader.start()
    with os.fdopen(theirs, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        run_step()
    reader.join()
    os.close(ours)
    written = b"".join(read).decode()
    lines = [line.strip() for line in written.split("\r")]
    assert lines.count("starting Ray, 0 s") > 1, "seconds go by while nothing is counted"
    assert any(line.startswith("encoding pictures 3/4, ") and line.endswith(" left") for line in lines), lines
    inner = lines.index("reading, 0 s")
    assert lines.index("starting Ray, 0 s") < inner < lines.index("writing, 0 s")
    assert any(line.startswith("encoding pictures 4/4, ") for line in lines[inner:]), "the outer one comes back"
    assert not any(line.startswith("encoding") for line in lines[inner : inner + lines[inner:].count("reading, 0 s")])
    assert not lines[-1], "the line is gone"


def test_a_log_of_a_long_step_holds_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr("sys.stderr", log)
    monkeypatch.setattr(progress, "LOG_S", 0.001)
    run_step()
    lines = log.getvalue().split("\n")
    assert all(line.startswith(f"encoding pictures {count}/4, ") for count, line in enumerate(lines[:-1], 1)), lines
    assert len(lines) > 2
    assert not lines[-1], "the last one is ended"


def test_a_log_of_a_short_step_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr("sys.stderr", log)
    run_step()
    assert not log.getvalue()
