"""Steps/s with a corpus read ahead from a file of ten times feed.memory_gib, against the same corpus in memory.

The model is `train_throughput`'s. Each run is a process of its own, without Ray, in turns. A streamed run starts with
the file on disk alone. Where version 1 memory cgroups can be made it runs in one that the file does not fit in, so that
the operating system cannot keep it in memory instead.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.figures import Figure
from pipelines.run_data import build_data, training_tables
from pipelines.stores import corpus_stores
from uml_core.config import Experiment, load_experiment, parse_experiment
from uml_core.corpora.rows import Row
from uml_core.training.run import TrainingRun

GIB = 2**30
MEMORY_GIB, TIMES, CGROUP_GIB = 0.2, 10, 1.2  # Python and torch take 0.6 GiB besides
CLASSES, BATCH, PART_ROWS, TURNS = 100, 32, 8192, 2
TARGET_ROWS, WIDTHS = 22_000, {"target": 384, "captions": 768}
FINGERPRINTS = dict.fromkeys(WIDTHS, "random")
CGROUPS = Path("/sys/fs/cgroup/memory")


def write_store(directory: Path, gib: float) -> Experiment:
    """Write random embeddings into a store, captions of some GiB; returns an experiment over them."""
    directory.mkdir()
    tree = {
        "name": "stream",
        "store": str(directory / "store"),
        "target": "target",
        "corpora": {name: {"modality": "vector", "format": "embeddings", "path": name} for name in WIDTHS},
        "train": {"max_steps": 6000, "eval_every": 500, "patience": 100, "batch_size": BATCH},
    }
    experiment, rng = parse_experiment(tree), np.random.default_rng(0)
    rows = {"target": TARGET_ROWS, "captions": int(gib * GIB) // (4 * WIDTHS["captions"])}
    for name, store in corpus_stores(experiment, FINGERPRINTS).items():
        for start in range(0, rows[name], PART_ROWS):
            numbers = range(start, min(start + PART_ROWS, rows[name]))
            splits = ["val" if name == "target" and number % 11 == 0 else "train" for number in numbers]
            part = [Row(str(n), f"{n % CLASSES:03d}", split) for n, split in zip(numbers, splits, strict=True)]
            values = rng.standard_normal((len(part), WIDTHS[name]), dtype=np.float32)
            store.write_part(part, values, [], dim=WIDTHS[name])
        store.publish(store.footers(), {"dim": WIDTHS[name]})
    return experiment


def measure(directory: Path) -> list[Figure]:
    """The rates of both feeds at ten times the memory, and of five epochs against one."""
    experiment = write_store(directory / "large", TIMES * MEMORY_GIB)
    memory = experiment.override({"feed.keep": "memory"})
    stream = experiment.override({"feed.memory_gib": MEMORY_GIB})
    file_s = train_apart(stream, directory)["ready_s"]
    turns = [(train_apart(memory, directory), train_apart(stream, directory)) for _ in range(TURNS)]
    assert len({run["weights"] for turn in turns for run in turn}) == 1, "both feeds give one model"
    kept, read = (statistics.median(rate for turn in turns for rate in turn[side]["rates"]) for side in (0, 1))
    begun = statistics.median(turn[1]["wait_s"] for turn in turns)
    kept_gib, read_gib = (max(turn[side]["gib"] for turn in turns) for side in (0, 1))
    small = write_store(directory / "small", 0.1)
    epoch = int(0.1 * GIB) // (4 * WIDTHS["captions"]) // BATCH
    changes = {"train.max_steps": 5 * epoch, "train.eval_every": epoch // 4, "feed.memory_gib": 0.1 / TIMES}
    five = train_apart(small.override({**changes, "feed.keep": "stream"}), directory)
    inside = statistics.median(five["rates"])
    return [
        Figure("stream: steps/s, captions of 10 times feed.memory_gib, against both corpora in memory", read, kept),
        Figure("stream: s of such a run that training waits for rows, most of it at the start", begun, digits=2),
        Figure("stream: peak memory of the process, GiB, against the same", read_gib, kept_gib, digits=2),
        Figure("stream: steps/s over five epochs, against the median quarter of an epoch", five["steps_per_s"], inside),
        Figure(f"stream: s to write the file of {TIMES * MEMORY_GIB:g} GiB, once", file_s, digits=1),
    ]


def train_apart(experiment: Experiment, directory: Path) -> dict[str, Any]:
    """Train in a process of its own; returns what it prints."""
    file = directory / "experiment.yaml"
    file.write_text(experiment.to_yaml(), encoding="utf-8")
    os.sync()
    for each in directory.rglob("*"):
        if each.is_file():
            with each.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with limited(experiment) as join:
        line = [sys.executable, "-m", "benchmarks.stream_throughput", str(file)]
        output = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True, preexec_fn=join).stdout
    figures: dict[str, Any] = json.loads(output.splitlines()[-1])
    return figures


@contextlib.contextmanager
def limited(experiment: Experiment) -> Iterator[Any]:
    """Yield what puts a process into a cgroup of CGROUP_GIB, page cache included; None where that cannot be."""
    group = CGROUPS / f"uml-{os.getpid()}"
    if experiment.feed.keep == "memory" or not os.access(CGROUPS, os.W_OK):
        yield None
        return
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(int(CGROUP_GIB * GIB)))
    try:
        yield lambda: (group / "cgroup.procs").write_text(str(os.getpid()))
    finally:
        group.rmdir()


def train(file: str) -> None:
    """Train one experiment and print its rates, its peak memory and a sum of its weights."""
    torch.set_num_threads(1)
    experiment, started = load_experiment(file), time.perf_counter()
    run = TrainingRun(experiment, build_data(experiment, training_tables(experiment, FINGERPRINTS)))
    ready_s, rates, before = time.perf_counter() - started, [], 0.0
    for _ in run.evaluations():
        rates.append(experiment.train.eval_every / (run.progress.train_s - before))
        before = run.progress.train_s
    figures = {
        "steps_per_s": run.progress.step / run.progress.train_s,
        "rates": rates,
        "wait_s": run.progress.data_wait_s,
        "ready_s": ready_s,
        "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "weights": float(run.model.head.weight.detach().double().sum()),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    train(sys.argv[1])
