"""Steps/s of `pipelines.train` against a bare PyTorch loop over the same tensors, and time to the first step.

The model is a target of 384 and an auxiliary corpus of 768 dimensions in 100 classes, batch 32 + 32. The floor: three
products of 32 × 384 × 768 and six of 32 × 768 × 100 a step, 86 MFLOP, and AdamW over 372 k parameters.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.bare_head import BATCH, CLASSES, STEPS, WIDTHS, bare_steps_per_s
from benchmarks.figures import Figure, experiment_in, peak_memory, step_results
from pipelines.embed import step as embed
from pipelines.stores import store_tables
from uml_core.config import Experiment
from uml_core.store.corpus_table import CorpusTable
from uml_core.tracking.reading import find_run


def write_corpora(directory: Path, *, rows: int = 20_000, seed: int = 0) -> Experiment:
    """Write random embeddings and return an experiment over them."""
    rng = np.random.default_rng(seed)
    for name, width in WIDTHS.items():
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
    train = {"max_steps": STEPS, "eval_every": 1000, "patience": 100, "batch_size": BATCH}
    return experiment_in(directory, {"target": "target", "corpora": corpora, "train": train})


def measure(directory: Path) -> list[Figure]:
    """Measure bare, ours, bare: the machine's drift falls on both sides. Ours runs as a user runs it."""
    experiment = write_corpora(directory)
    embed.run(experiment)
    tables = store_tables(experiment)
    before = bare_by_threads(tables, experiment)
    with peak_memory() as memory:
        results = step_results("train", str(directory / "experiment.yaml"))
    after = bare_by_threads(tables, experiment)
    bare = {num_threads: (before[num_threads] + after[num_threads]) / 2 for num_threads in before}
    record = find_run(experiment.tracking, results["run_id"])
    ours = results["steps_per_s"]
    return [
        Figure("train: steps/s against the bare loop on one thread", ours, bare[1]),
        Figure("train: the same, against the bare loop on its better thread count", ours, max(bare.values())),
        Figure("train: s from process start to the first step", record.metrics["perf/time_to_first_step_s"], digits=1),
        Figure("train: peak memory of all processes, GiB", memory.gib, digits=2),
    ]


def bare_by_threads(tables: Mapping[str, CorpusTable], trial: Experiment) -> dict[int, float]:
    """The bare loop's rate on one thread and on all."""
    rates = {}
    for num_threads in sorted({1, os.cpu_count() or 1}):
        torch.set_num_threads(num_threads)
        rates[num_threads] = bare_steps_per_s(tables, trial)
    return rates
