"""What a corpus of any size would take to embed, to train on and to sweep over, by a model; or a run that measures.

    python -m benchmarks.scale --rows 1e9 --gpus 256
    python -m benchmarks.scale --measure 1e6          # really lists, embeds, resumes and reads back; a light encoder

`MEASURED` was measured on a machine of two cores (docs/measured.md says where); `ASSUMED` was not, and can be given.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.embed import step as embed
from pipelines.ray_session import ray_session
from pipelines.stores import corpus_store
from uml_core.config import Experiment, parse_experiment

MEASURED = {
    "list_us": (16.0, "µs of a core to list a row and compare its key and id"),
    "hand_us": (12.0, "µs of a core to write a row into a part's lines and read it again"),
    "head_steps_s": (728.0, "steps/s of a head on one core"),
    "sum_rows_s": (45_000.0, "rows/s and core added up for a head in closed form, 256 wide"),
    "trial_s": (0.25, "s a trial beyond its training"),
    "log_ms": (8.5, "ms to write a trial to MLflow"),
    "driver_mb": (350.0, "MB of the driver of embed, but for its parts; with MLflow"),
    "driver_part_kb": (3.8, "kB more a part, most of it Ray Data's statistics"),
    "driver_part_ms": (20.0, "ms of the driver's core a part, with what Ray Data does by the clock"),
}
ASSUMED = {
    "gpu_rows_s": (5_000.0, "rows/s that a GPU encodes: none was at hand for the encoders"),
    "cores_a_gpu": (8.0, "CPU cores beside a GPU"),
    "decode_us": (2_000.0, "µs of a core to read and decode a row: a small picture; a sentence takes 50"),
    "put_ms": (60.0, "ms to write an object, with its temporary name and the copy"),
    "get_ms": (30.0, "ms to read an object's footer"),
    "node_mb_s": (1_000.0, "MB/s between a node of 8 GPUs and object storage"),
    "part_rows": (4_096.0, "rows in a part"),
    "slices": (1_024.0, "slices, at most one for four shards"),
    "gpu_price": (2.5, "currency an hour and GPU, with its cores"),
    "steps": (10_000.0, "steps of a head"),
    "trials": (1_000.0, "trials of a sweep"),
}
PIECES, CLASSES, DIM = 256, 10, 4


@dataclass(frozen=True)
class Cost:
    """One thing that a step does, in seconds; those of one step that run `beside` each other do not add up."""

    step: str
    what: str
    seconds: float
    beside: bool = True


def costs(rows: float, gpus: int, row_bytes: float, at: dict[str, float]) -> Iterator[Cost]:
    cores, nodes, parts = gpus * at["cores_a_gpu"], max(1.0, gpus / 8), rows / at["part_rows"]
    moved = rows * row_bytes / (nodes * at["node_mb_s"] * 1e6)
    listing = min(cores, at["slices"])
    yield Cost("embed", "encode", rows / (gpus * at["gpu_rows_s"]))
    yield Cost("embed", "read and decode", rows * at["decode_us"] / 1e6 / cores)
    yield Cost("embed", "list and compare, by slices", rows * (at["list_us"] + at["hand_us"]) / 1e6 / listing)
    yield Cost("embed", "write parts", parts * at["put_ms"] / 1e3 / gpus + moved)
    yield Cost("embed", "hand out parts, one driver", parts * at["driver_part_ms"] / 1e3)
    yield Cost("embed", "settle", parts * at["get_ms"] / 1e3 / (32 * listing), beside=False)
    yield Cost("embed again, few new rows", "list and compare, by slices", rows * at["list_us"] / 1e6 / listing)
    yield Cost("train, closed form", "add up all rows", rows / (at["sum_rows_s"] * cores))
    yield Cost("train, closed form", "read the store", moved)
    yield Cost("train, by steps", "read the store once, on one node", moved * nodes, beside=False)
    yield Cost("train, by steps", "steps", at["steps"] / at["head_steps_s"], beside=False)
    yield Cost("sweep of heads", "trials", at["trials"] * (at["steps"] / at["head_steps_s"] + at["trial_s"]) / cores)
    yield Cost("sweep of heads", "MLflow, one writer", at["trials"] * at["log_ms"] / 1e3)


def say(rows: float, gpus: int, row_bytes: float, at: dict[str, float]) -> None:
    found = list(costs(rows, gpus, row_bytes, at))
    print(f"{rows:.0e} rows of {row_bytes:.0f} bytes stored, {gpus} GPUs: {rows * row_bytes / 1e12:.2f} TB")
    for step in dict.fromkeys(cost.step for cost in found):
        own = [cost for cost in found if cost.step == step]
        beside = [cost for cost in own if cost.beside]
        total = max((cost.seconds for cost in beside), default=0.0) + sum(c.seconds for c in own if not c.beside)
        most = max(own, key=lambda cost: cost.seconds)
        price = total / 3600 * gpus * at["gpu_price"]
        print(f"{step:<28}{said(total):>10}  {price:>12,.2f}  bound by: {most.what}")
        print("".join(f"    {cost.what}: {said(cost.seconds)}\n" for cost in own), end="")
    parts = rows / at["part_rows"]
    driver = (at["driver_mb"] + parts * at["driver_part_kb"] / 1e3) / 1e3
    print(f"driver of embed: {driver:.1f} GB for {parts:,.0f} parts")
    slice_gb = rows / at["slices"] * 64 / 1e9
    print(f"a task that lists a slice: {slice_gb:.2f} GB")
    print(f"one process instead (embed.slices=1): first row encoded after {said(rows * at['list_us'] / 1e6)}")
    memory = rows * row_bytes / 1e12
    print("Stop and use something else:")
    print(
        f"  tune, evaluate and advise hold all rows in each process: {memory:.2f} TB here; give them a part of the rows"
    )
    if parts > 1e6:
        print("  parts: more than a million; set embed.part_rows higher, or keep several corpora")
    if rows / at["slices"] > 2e7:
        print("  slices of more than 20 million rows: bring more shards, or a table format with an index of its own")
    if rows > 1e10:
        print("  above 10¹⁰ rows: a store with a catalogue (Iceberg, Lance), of which embeddings are written in bulk")


def said(seconds: float) -> str:
    return (
        f"{seconds:.1f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def measure(rows: int) -> None:
    """List, embed, run again, add 1 %, read back: seconds and the driver's peak memory, on this machine."""
    with tempfile.TemporaryDirectory() as folder, ray_session():
        experiment = written(Path(folder), rows)
        timed("embed all", lambda: embed.run(experiment))
        first_s = corpus_store(experiment, "rows").finished_manifest()["first_part_s"]
        print(f"first part in the store after {first_s:.1f} s")
        timed("nothing to do", lambda: embed.run(experiment))
        with (Path(folder) / "rows" / "000.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(line(rows + index) for index in range(rows // 100))
        timed("1 % new", lambda: embed.run(experiment))
        store = corpus_store(experiment, "rows")
        timed("read back, labels alone", lambda: store.load_labels(store.finished_manifest()))
        manifest = store.finished_manifest()
        print(f"{manifest['rows']} rows in {len(manifest['parts'])} parts, {manifest.get('slices', 1)} slices")


def timed(what: str, work: object) -> None:
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    assert callable(work)
    work()
    used = resource.getrusage(resource.RUSAGE_SELF)
    own = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    print(
        f"{what}: {time.perf_counter() - started:.1f} s, driver's CPU {own:.1f} s, peak {used.ru_maxrss / 1024:.0f} MB"
    )
    sys.stdout.flush()


def line(index: int) -> str:
    return json.dumps({"id": f"{index:09d}", "text": f"row {index} of many", "label": str(index % CLASSES)}) + "\n"


def written(folder: Path, rows: int) -> Experiment:
    (folder / "rows").mkdir()
    for piece in range(PIECES):
        with (folder / "rows" / f"{piece:03d}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(line(index) for index in range(piece, rows, PIECES))
    corpus = {"modality": "text", "format": "table", "path": str(folder / "rows")}
    tree = {
        "name": "scale",
        "store": str(folder / "store"),
        "target": "rows",
        "corpora": {"rows": corpus},
        "encoders": {"text": {"source": "module", "name": "tests.light_encoder:WordCounts"}},
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
    }
    return parse_experiment(tree)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=float, default=1e9)
    parser.add_argument("--gpus", type=int, default=256)
    parser.add_argument("--row-bytes", type=float, default=3072, help="of a stored embedding; 768 wide in float32")
    parser.add_argument("--measure", type=float, metavar="ROWS", help="run this many rows instead")
    for name, (value, meaning) in {**MEASURED, **ASSUMED}.items():
        kind = "measured" if name in MEASURED else "assumed"
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=float, default=value, help=f"{kind}: {meaning} ({value:g})"
        )
    given = parser.parse_args()
    if given.measure:
        measure(int(given.measure))
        return
    at = {name: getattr(given, name) for name in (*MEASURED, *ASSUMED)}
    say(given.rows, given.gpus, given.row_bytes, at)
    print("assumed, not measured: " + "; ".join(f"{name}={at[name]:g}" for name in ASSUMED))


if __name__ == "__main__":
    main()
