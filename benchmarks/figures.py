"""A measured figure, the machine it was measured on, and the peak memory of a process and its children."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Figure:
    """Ours against bare; bare None where there is nothing to compare with."""

    name: str
    ours: float
    bare: float | None = None
    digits: int = 0

    def row(self) -> str:
        """Return a row of the Markdown table."""
        bare = "–" if self.bare is None else f"{self.bare:.{self.digits}f}"
        ratio = "–" if self.bare is None else f"{self.ours / self.bare:.2f}"
        return f"| {self.name} | {self.ours:.{self.digits}f} | {bare} | {ratio} |"


@dataclass
class PeakMemory:
    """The largest sum of resident memory (shared pages counted once each process) that was seen, in GiB."""

    gib: float = 0.0


@contextlib.contextmanager
def peak_memory(every_s: float = 2.0) -> Iterator[PeakMemory]:
    """Sample the proportional memory (PSS) of this process and its descendants; seldom, because sampling costs CPU."""
    peak, stop = PeakMemory(), threading.Event()

    def sample() -> None:
        while not stop.wait(every_s):
            total = 0
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    total += process.memory_full_info().pss
            peak.gib = max(peak.gib, total / 2**30)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def machine() -> str:
    """Return one line on the commit and the machine."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.processor()
    return f"commit {commit}, {os.cpu_count()} cores of {model}, Python {platform.python_version()}"
