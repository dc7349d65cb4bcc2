"""Steps/s of a corpus read ahead from a file of ten times the memory, against the same corpus in memory.

The model is `train_throughput`'s. Each side is a process of its own that trains for five epochs of the target beside the
large corpus, without Ray. The streamed one runs in a memory cgroup where there is one (version 1, as root), so that the
operating system cannot keep the file in memory instead; its page cache is emptied first.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.figures import Figure
from pipelines.stored import corpus_fingerprints, corpus_stores, read_training_data
from uml_core.config import Experiment, load_experiment, parse_experiment
from uml_core.corpora.rows import Row
from uml_core.training import TrainingRun

GIB = 2**30
MEMORY_GIB, TIMES = 0.25, 10  # feed.memory_gib, and how many times larger the corpus is
PROCESS_GIB = 0.75  # what Python and torch take besides
WIDTH, TARGET_ROWS, CLASSES, BATCH, PART_ROWS = 768, 20_000, 100, 32, 8192
EPOCHS, CGROUPS = 5, Path("/sys/fs/cgroup/memory")


def write_store(directory: Path) -> Experiment:
    """Write random embeddings into a store, a part in memory at a time; returns an experiment over them."""
    names = ("target", "captions")
    corpora = {name: {"modality": "vector", "format": "embeddings", "path": name} for name in names}
    steps = EPOCHS * TARGET_ROWS // BATCH
    tree = {
        "name": "stream",
        "store": str(directory / "store"),
        "target": "target",
        "corpora": corpora,
        "train": {"max_steps": steps, "eval_every": steps // EPOCHS, "patience": 100, "batch_size": BATCH},
    }
    experiment = parse_experiment(tree)
    rng, rows = np.random.default_rng(0), {"target": TARGET_ROWS * 11 // 10}
    rows["captions"] = int(TIMES * MEMORY_GIB * GIB) // (4 * WIDTH)
    for name, store in corpus_stores(experiment, {name: "ready" for name in names}).items():
        width = 384 if name == "target" else WIDTH
        for start in range(0, rows[name], PART_ROWS):
            numbers = range(start, min(start + PART_ROWS, rows[name]))
            part = [
                Row(str(n), f"{n % CLASSES:03d}", "val" if name == "target" and n % 11 == 0 else "train") for n in numbers
            ]
            store.write_part(part, rng.standard_normal((len(part), width), dtype=np.float32), [], dim=width)
        store.publish(store.footers(), {"dim": width})
    return experiment


def train_one(file: str) -> None:
    """Train one experiment and print its rates, over all steps and the median of an epoch, and its peak memory."""
    torch.set_num_threads(1)
    experiment = load_experiment(file)
    started = time.perf_counter()
    from pipelines.stored import build_data, training_tables

    tables = training_tables(experiment, {name: "ready" for name in experiment.corpora})
    run = TrainingRun(experiment, build_data(experiment, tables))
    ready_s, rates, before = time.perf_counter() - started, [], 0.0
    for evaluation in run.evaluations():
        rates.append(experiment.train.eval_every / (run.progress.train_s - before))
        before = run.progress.train_s
        last = evaluation.step
    figures = {
        "steps_per_s": last / run.progress.train_s,
        "median": float(np.median(rates)),
        "wait_s": run.progress.data_wait_s,
        "ready_s": ready_s,
        "weights": float(run.model.head.weight.double().sum()),
        "rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "rates": rates,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    train_one(sys.argv[1])
