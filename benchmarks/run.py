"""All figures of docs/measured.md in one run: training, embedding and sweeping, each against its bare loop.

    python -m benchmarks.run                 # about 20 minutes on 2 cores
    python -m benchmarks.run --only train sweep

Prints one table; a ratio is ours divided by bare (above 1: ours is faster). Absolute figures vary with the machine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks import (
    demo_floor,
    embed_scale,
    embed_throughput,
    few_shot_protocol,
    finetune_throughput,
    self_supervised_step,
    stream_throughput,
    sufficient_statistics,
    sweep_throughput,
    train_throughput,
)
from benchmarks.figures import TABLE_HEAD, Figure, machine

BENCHMARKS: dict[str, Callable[[Path], Iterable[Figure]]] = {
    "train": train_throughput.measure,
    "stream": stream_throughput.measure,
    "statistics": sufficient_statistics.measure,
    "finetune": finetune_throughput.measure,
    "compile": finetune_throughput.measure_compiled,
    "embed": embed_throughput.measure,
    "embed_scale": embed_scale.measure,
    "sweep": sweep_throughput.measure,
    "grid": sweep_throughput.measure_grid,
    "overhead": sweep_throughput.measure_overhead,
    "solved": sweep_throughput.measure_solved,
    "few_shot": few_shot_protocol.measure,
    "demo": demo_floor.measure,
    "self_supervised_step": lambda _: self_supervised_step.measure(),  # last: it keeps this process to one thread
}


def main() -> None:
    """Run the chosen benchmarks and print their figures as a Markdown table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), default=list(BENCHMARKS))
    arguments = parser.parse_args()
    figures: list[Figure] = []
    print(f"\n{machine()}\n\n{TABLE_HEAD}", flush=True)
    for name in arguments.only:
        with tempfile.TemporaryDirectory() as directory:
            for figure in BENCHMARKS[name](Path(directory)):
                print(figure.row(), flush=True)
                figures.append(figure)
    print(json.dumps({figure.name: figure.ours for figure in figures}))


if __name__ == "__main__":
    main()
