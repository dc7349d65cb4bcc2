"""Rows/s and memory of a solved head over ten million rows of the store, against a plain loop over the same files.

Embeddings of 256 numbers in float16, written here as parts: 5 GB of disk while it runs. The loop reads a part with
pyarrow, and adds up Gram matrix and class sums in float64 with numpy on all cores. Each run of ours is a process of its
own, from labels to head and subset.json, with what it takes to start Ray.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.figures import Figure, peak_memory
from pipelines.ray_session import ray_session
from pipelines.row_sums import add_up_rows
from pipelines.run_data import check_data, load_data
from pipelines.stores import corpus_store
from pipelines.subset_files import subset_of
from uml_core.config import Experiment, load_experiment, parse_experiment
from uml_core.corpora.rows import hashes_of
from uml_core.store.counted_table import rest_of
from uml_core.store.parts import PartFooter
from uml_core.training.run import TrainingRun

ROWS, FEW, DIM, CLASSES, PART_ROWS = 10_000_000, 1_000_000, 256, 100, 50_000


def write_store(directory: Path, num_rows: int) -> Experiment:
    """Write random rows around the means of classes into a store, every part the same; 1 % are to validate on."""
    directory.mkdir()
    np.save(directory / "ready.npy", np.zeros((1, DIM), dtype=np.float16))  # what the store's fingerprint is of
    corpora = {"rows": {"modality": "vector", "format": "embeddings", "path": str(directory / "ready.npy")}}
    tree = {"name": "sums", "store": str(directory / "store"), "target": "rows", "corpora": corpora}
    experiment = parse_experiment({**tree, "model": {"head": "discriminant"}, "feed": {"keep": "stream"}})
    store, rng = corpus_store(experiment, "rows"), np.random.default_rng(0)
    Path(store.directory).mkdir(parents=True)
    labels = rng.integers(CLASSES, size=PART_ROWS)
    values = rng.standard_normal((CLASSES, DIM))[labels] * 0.1 + rng.standard_normal((PART_ROWS, DIM))
    embeddings = pa.FixedSizeListArray.from_arrays(pa.array(values.astype(np.float16).reshape(-1)), DIM)
    splits, parts = (["val"] + ["train"] * 99) * (PART_ROWS // 100), []
    names = [str(label) for label in labels]
    counts: dict[str, dict[str, int]] = {"val": {}, "train": {}}
    for (split, name), count in Counter(zip(splits, names, strict=True)).items():
        counts[split][name] = count
    columns = {"label": pa.array(names), "split": pa.array(splits), "embedding": embeddings}
    for start in range(0, num_rows, PART_ROWS):
        ids = pa.array([f"{number:08d}" for number in range(start, start + PART_ROWS)])
        table = pa.table({"id": ids, **columns})
        keys = hashes_of(str(number) for number in range(start, start + PART_ROWS))
        parts.append(PartFooter(f"part-{start:08d}.parquet", keys, counts, ()))
        settings = {"compression": "zstd", "compression_level": 1, "use_dictionary": ["label", "split"]}
        pq.write_table(table, f"{store.directory}/{parts[-1].name}", **settings, write_statistics=False)
    store.publish(parts, {"dim": DIM})
    (directory / "experiment.yaml").write_text(experiment.to_yaml(), encoding="utf-8")
    return experiment


def measure(directory: Path) -> Iterator[Figure]:
    """The pass over all rows, against the loop and against the pass over a tenth of them."""
    few, many = (write_store(directory / str(size), size) for size in (FEW, ROWS))
    bare = loop_rate(few)
    runs = {}
    for name, experiment in (("few", few), ("many", many)):
        with peak_memory() as memory:
            runs[name] = solve_apart(experiment)
        runs[name]["gib"] = memory.gib
    ours = runs["many"]
    what = f"{ROWS:.0e} rows of {DIM} float16".replace("e+0", "e")
    yield Figure(f"statistics: rows/s, {what} added up, against pyarrow and numpy", ROWS / ours["pass_s"], bare)
    yield Figure("statistics: s before that, for labels, splits and the start of Ray", ours["before_s"], digits=1)
    what = "its search, and a file of the rows to validate on"
    yield Figure(f"statistics: s of the head after that, with {what}", ours["head_s"], digits=1)
    for kind, label in {"gib": "all processes", "driver_gib": "the driver"}.items():
        name = f"statistics: peak memory of {label}, GiB, against a tenth of the rows"
        yield Figure(name, ours[kind], runs["few"][kind], digits=2)


def loop_rate(experiment: Experiment) -> float:
    """Rows/s of one process that reads part after part and adds up."""
    store = corpus_store(experiment, "rows")
    gram, sums, started = np.zeros((DIM, DIM)), np.zeros((CLASSES, DIM)), time.perf_counter()
    manifest = store.finished_manifest()
    for part in manifest["parts"]:
        table = pq.read_table(f"{store.directory}/{part}", columns=["label", "embedding"])
        rows_ND = table["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, DIM).astype(np.float64)
        gram += rows_ND.T @ rows_ND
        labels = table["label"].cast(pa.int64()).to_numpy()
        order = np.argsort(labels, kind="stable")
        found, starts = np.unique(labels[order], return_index=True)
        sums[found] += np.add.reduceat(rows_ND[order], starts)
    return float(manifest["rows"] / (time.perf_counter() - started))


def solve_apart(experiment: Experiment) -> dict[str, Any]:
    """Solve in a process of its own; returns what it prints."""
    file = Path(experiment.store).with_name("experiment.yaml")
    line = [sys.executable, "-m", "benchmarks.sufficient_statistics", str(file)]
    output = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True).stdout
    figures: dict[str, Any] = json.loads(output.splitlines()[-1])
    return figures


def solve(file: str) -> None:
    """Add up an experiment's rows, solve its head, and print seconds and memory."""
    experiment, started = load_experiment(file), time.perf_counter()
    with ray_session():
        checked = check_data(experiment)
        before = time.perf_counter()
        sums = add_up_rows(experiment, checked)
        after = time.perf_counter()
    list(TrainingRun(experiment, load_data(experiment, checked.fingerprints, sums)).evaluations())
    store = corpus_store(experiment, "rows")
    ids = (store if checked.data.labelled.counts is None else rest_of(store)).load_ids()
    (Path(file).with_name("subset.json")).write_text(subset_of(experiment, checked.data, ids), encoding="utf-8")
    figures = {"before_s": before - started, "pass_s": after - before, "head_s": time.perf_counter() - after}
    figures["driver_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(figures))


if __name__ == "__main__":
    solve(sys.argv[1])
