"""Where the wall time of a step went, as its driver saw it: what `--timings` prints.

    with timed("log"):
        tracker.log_metrics(points)

A stage within another is taken out of it, and what is in none is `other`: stages add up to the wall time. Other threads
are not counted, for the driver does not wait for them; what workers did meanwhile stands beside, by `add_workers`.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

STAGES = ("start", "import", "Ray", "read", "encode", "train", "measure", "log", "draw", "other")


class Clock:
    """Charges time to the innermost stage that is on; the first is the interpreter's start."""

    def __init__(self, since: float) -> None:
        self._since, self._open = since, ["start"]
        self.run_began = since  # seconds since 1970
        self._seconds, self._workers = Counter[str](), Counter[str]()

    def begin(self) -> None:
        """Begin with a step: of what was before, the process's start stays."""
        self._charge()
        self._open, self._seconds, self._workers = ["other"], Counter(start=self._seconds["start"]), Counter()

    def begin_run(self) -> None:
        """Begin with a training run that the process did not begin with: a twin's, or that of a step within it."""
        self.run_began = time.time()

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Charge what the main thread does within to a stage."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._charge()
        self._open.append(stage)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def add_workers(self, seconds: Mapping[str, float]) -> None:
        """Add what workers have spent, by their stages; they ran side by side."""
        self._workers.update(seconds)

    def taken(self) -> dict[str, Any]:
        """Seconds by stage, their sum `wall`, and `workers` where a step has said what they did."""
        self._charge()
        seconds = {stage: round(self._seconds[stage], 3) for stage in STAGES}
        workers = {stage: round(value, 3) for stage, value in self._workers.items()}
        return {**seconds, "wall": round(sum(seconds.values()), 3), **({"workers": workers} if workers else {})}

    def _charge(self) -> None:
        now = time.time()  # as the process's start is given
        self._seconds[self._open[-1]] += now - self._since
        self._since = now


def _began() -> float:
    """When this process began, seconds since 1970; psutil's own answer may be a second off, as the boot time is."""
    try:
        ticks = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    except OSError:  # no Linux
        return psutil.Process().create_time()
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")


CLOCK = Clock(_began())
timed, add_workers = CLOCK.timed, CLOCK.add_workers


def table(taken: Mapping[str, Any]) -> str:
    """A line a stage that took time, with its share of the wall time."""
    wall = max(taken["wall"], 1e-3)
    lines = [f"{stage:<8}{taken[stage]:>8.1f} s{100 * taken[stage] / wall:>5.0f} %" for stage in STAGES if taken[stage]]
    lines.append(f"{'wall':<8}{taken['wall']:>8.1f} s")
    workers = [f"{stage} {value:.1f} s" for stage, value in taken.get("workers", {}).items()]
    return "\n".join([*lines, *([f"workers, side by side: {', '.join(workers)}"] if workers else [])])
