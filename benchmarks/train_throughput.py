"""Steps/s of `pipelines.train` against a bare PyTorch loop over the same tensors, and time to the first step.

The model is a target of 384 and an auxiliary corpus of 768 dimensions in 100 classes, batch 32 + 32. The floor: three
products of 32 × 384 × 768 and six of 32 × 768 × 100 a step, 86 MFLOP, and AdamW over 372 k parameters.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from benchmarks.figures import Figure, peak_memory
from pipelines import embed
from pipelines.stored import store_tables
from uml_core.config import Experiment, parse_experiment
from uml_core.tables import CorpusTable
from uml_core.tracking import find_run

STEPS, WARMUP, CLASSES, BATCH = 4000, 200, 100, 32


def write_corpora(directory: Path, *, rows: int = 20_000, seed: int = 0) -> Experiment:
    """Write random embeddings and return an experiment over them."""
    rng = np.random.default_rng(seed)
    for name, width in (("target", 384), ("names", 768)):
        labels = rng.integers(0, CLASSES, size=rows)
        splits = np.where(np.arange(rows) % 20 == 0, "val", "train") if name == "target" else np.full(rows, "train")
        values = pa.array(rng.standard_normal((rows, width), dtype=np.float32).reshape(-1))
        columns = {"label": [f"{label:03d}" for label in labels], "split": splits}
        pq.write_table(
            pa.table({**columns, "embedding": pa.FixedSizeListArray.from_arrays(values, width)}),
            directory / f"{name}.parquet",
        )
    corpora = {
        name: {"modality": "vector", "format": "embeddings", "path": str(directory / f"{name}.parquet")}
        for name in ("target", "names")
    }
    tree = {
        "name": "benchmark",
        "store": str(directory / "store"),
        "tracking": {"uri": f"sqlite:///{directory}/mlflow.db", "artifacts": str(directory / "artifacts")},
        "target": "target",
        "corpora": corpora,
        "train": {"max_steps": STEPS, "eval_every": 1000, "patience": 100, "batch_size": BATCH},
    }
    return parse_experiment(tree)


def bare_steps_per_s(tables: Mapping[str, CorpusTable], trial: Experiment, *, steps: int = STEPS) -> float:
    """Run a trial as a plain, well-written loop: resident tensors, sampled indices, fused AdamW, no evaluation."""
    names = [name for name in trial.corpora if trial.loss_weight(name) > 0]
    values = {name: torch.from_numpy(tables[name].embeddings) for name in names}
    labels = {name: torch.from_numpy(tables[name].label_codes) for name in names}
    widths = {name: tables[name].embeddings.shape[1] for name in trial.corpora}
    shared = widths.get("names", widths["target"])
    head = nn.Linear(shared, CLASSES, bias=False)
    project = nn.Linear(widths["target"], shared, bias=False) if shared != widths["target"] else nn.Identity()
    scales = {name: nn.Parameter(torch.ones(()), requires_grad=trial.model.learnable_scale) for name in names}
    trained = [value for value in (*project.parameters(), *head.parameters(), *scales.values()) if value.requires_grad]
    decay, size = trial.optim.weight_decay, trial.train.batch_size
    optimizer = torch.optim.AdamW(trained, lr=trial.optim.lr, weight_decay=decay, fused=True)
    started = time.perf_counter()
    for step in range(steps + WARMUP):
        if step == WARMUP:
            started = time.perf_counter()
        index = {name: torch.randint(len(values[name]), (size,)) for name in names}
        hidden = {name: values[name][rows] for name, rows in index.items()}
        hidden["target"] = project(hidden["target"])
        losses = [
            trial.loss_weight(name)
            * nn.functional.cross_entropy(scales[name] * head(hidden[name]), labels[name][index[name]])
            for name in names
        ]
        loss = torch.stack(losses).sum() if len(losses) > 1 else losses[0]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return steps / (time.perf_counter() - started)


def measure(directory: Path) -> list[Figure]:
    """Measure bare, ours, bare: the machine's drift falls on both sides. Ours runs as a user runs it."""
    experiment = write_corpora(directory)
    embed.run(experiment)
    file = directory / "experiment.yaml"
    file.write_text(experiment.to_yaml(), encoding="utf-8")
    tables = store_tables(experiment)
    before = bare_by_threads(tables, experiment)
    with peak_memory() as memory:
        line = [sys.executable, "-m", "pipelines.train", str(file)]
        output = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True).stdout
    after = bare_by_threads(tables, experiment)
    bare = {num_threads: (before[num_threads] + after[num_threads]) / 2 for num_threads in before}
    results = json.loads(output.splitlines()[-1])
    record = find_run(experiment.tracking, results["run_id"])
    ours = results["steps_per_s"]
    return [
        Figure("train: steps/s, one worker under Ray Train, against the bare loop on one thread", ours, bare[1]),
        Figure("train: the same, against the bare loop on its better thread count", ours, max(bare.values())),
        Figure("train: s from process start to the first step", record.metrics["perf/time_to_first_step_s"], digits=1),
        Figure("train: peak memory of all processes, GiB", memory.gib, digits=2),
    ]


def bare_by_threads(tables: Mapping[str, CorpusTable], trial: Experiment) -> dict[int, float]:
    """Return the bare loop's rate on one thread and on all."""
    rates = {}
    for num_threads in sorted({1, os.cpu_count() or 1}):
        torch.set_num_threads(num_threads)
        rates[num_threads] = bare_steps_per_s(tables, trial)
    return rates
