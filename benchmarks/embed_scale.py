"""How `pipelines.embed` scales: memory at ten times the rows, the cost of a kill at half way, one and two actors.

Each run is a process of its own, as a user starts it. Pictures of 64 x 64 under EfficientNet-lite0 in bfloat16.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figures import Figure, experiment_in, peak_memory, write_noise
from pipelines.stores import corpus_store
from uml_core.config import Experiment

FEW, MANY, PART_ROWS = 400, 4_000, 64


def write_experiment(directory: Path, count: int, *, store: str, actors: int = 1) -> Experiment:
    """Write pictures and an experiment file over them, named after the store."""
    pictures = directory / f"pictures-{count}"
    if not pictures.exists():
        files = (pictures / "train" / "noise" / f"{index:06d}.png" for index in range(count))
        write_noise(files, blocks=(4, 4), size=(64, 64))
    experiment = experiment_in(
        directory,
        {
            "store": str(directory / store),
            "target": "pictures",
            "corpora": {"pictures": {"modality": "image", "format": "folder", "path": str(pictures)}},
            "embed": {"part_rows": PART_ROWS, "precision": "bfloat16", "actors": actors},
        },
    )
    (directory / f"{store}.yaml").write_text(experiment.to_yaml(), encoding="utf-8")
    return experiment


def start(directory: Path, store: str) -> subprocess.Popen[str]:
    """Start the step as a user does, in a session of its own."""
    line = [sys.executable, "-m", "pipelines.embed", str(directory / f"{store}.yaml")]
    return subprocess.Popen(line, stdout=subprocess.PIPE, text=True, start_new_session=True)


def finish(process: subprocess.Popen[str]) -> dict[str, float]:
    """Wait for a run; returns the facts of its corpus."""
    output = process.communicate()[0]
    assert process.returncode == 0
    facts: dict[str, float] = json.loads(output.splitlines()[-1])["corpora"]["pictures"]
    return facts


def measure(directory: Path) -> Iterator[Figure]:
    """Measure memory, resuming and actors."""
    yield from _memory(directory)
    yield from _resume(directory)
    yield from _actors(directory)


def _memory(directory: Path) -> list[Figure]:
    peaks = {}
    for count in (FEW, MANY):
        write_experiment(directory, count, store=f"memory-{count}")
        with peak_memory() as memory:
            finish(start(directory, f"memory-{count}"))
        peaks[count] = memory.gib
    name = f"embed: peak memory of all processes, {MANY} rows against {FEW}, GiB"
    return [Figure(name, peaks[MANY], peaks[FEW], digits=2)]


def _resume(directory: Path) -> list[Figure]:
    whole = write_experiment(directory, MANY, store="whole")
    started = time.perf_counter()
    facts = finish(start(directory, "whole"))
    whole_s = time.perf_counter() - started
    killed = write_experiment(directory, MANY, store="killed")
    process = start(directory, "killed")
    folder = Path(corpus_store(killed, "pictures").directory)
    total = len(list(Path(corpus_store(whole, "pictures").directory).glob("part-*")))
    while len(list(folder.glob("part-*"))) < total // 2:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    started = time.perf_counter()
    finish(start(directory, "killed"))
    resumed_s = time.perf_counter() - started
    return [
        Figure(f"embed: s to resume after a kill at half of {MANY} rows, against a full run", resumed_s, whole_s, 1),
        Figure("embed: s of that full run until its first part", facts["first_part_s"], digits=1),
    ]


def _actors(directory: Path) -> list[Figure]:
    rates = {}
    for actors in (1, 2):
        write_experiment(directory, MANY // 2, store=f"actors-{actors}", actors=actors)
        rates[actors] = finish(start(directory, f"actors-{actors}"))["steady_rows_per_s"]
    return [Figure("embed: rows/s with 2 actors against 1, on the same cores", rates[2], rates[1])]
