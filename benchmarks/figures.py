"""What benchmarks share: a figure, the machine, peak memory, an experiment, a step in a process of its own, noise."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from uml_core.config import Experiment, parse_experiment

TABLE_HEAD = "| figure | ours | bare | ratio |\n|---|--:|--:|--:|"


@dataclass(frozen=True)
class Figure:
    """Ours against bare; bare None where there is nothing to compare with."""

    name: str
    ours: float
    bare: float | None = None
    digits: int = 0

    def row(self) -> str:
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
    """One line on the commit and the machine."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.processor()
    return f"commit {commit}, {os.cpu_count()} cores of {model}, Python {platform.python_version()}"


def experiment_in(directory: Path, tree: Mapping[str, Any]) -> Experiment:
    """An experiment whose store and database lie in a directory; its file, experiment.yaml, as well."""
    tracking = {"uri": f"sqlite:///{directory}/mlflow.db", "artifacts": str(directory / "artifacts")}
    experiment = parse_experiment(
        {"name": "benchmark", "store": str(directory / "store"), "tracking": tracking, **tree},
    )
    (directory / "experiment.yaml").write_text(experiment.to_yaml(), encoding="utf-8")
    return experiment


def step_results(step: str, *line: str, **environment: str) -> dict[str, Any]:
    """Run a step in a process of its own, as a user does; its results as it prints them."""
    command = [sys.executable, "-m", f"pipelines.{step}", *line]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **environment})
    results: dict[str, Any] = json.loads(output.stdout.splitlines()[-1])
    return results


def write_noise(files: Iterable[Path], *, blocks: tuple[int, int], size: tuple[int, int], quality: int = 75) -> None:
    """Write pictures of random blocks (rows, columns), smoothly enlarged to a size (width, height) in pixels."""
    rng = np.random.default_rng(0)
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, size=(*blocks, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(file, quality=quality)
