"""Figures of one GPU, each against a bare loop in the same process: fine-tuning, compiling, packs, feeding, embedding.

    python -m benchmarks.gpu                        # on one GPU; what takes longest, compiling, comes last
    python -m benchmarks.gpu --only finetune packed
    python -m benchmarks.gpu --small                # the same code on a CPU, with tiny models: shows that it runs

Needs neither ray nor the pipelines. Prints rows of a Markdown table as they come; a ratio is ours divided by bare. The
figures of --small are of no interest; it leaves out `compile`, which takes a minute, unless --only names it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from benchmarks import gpu_embed, gpu_feed, gpu_finetune, gpu_packed
from benchmarks.figures import TABLE_HEAD, Figure, machine
from benchmarks.gpu_device import Bench, peak_flops_of

BENCHMARKS: dict[str, Callable[[Bench, Path], Iterator[Figure]]] = {
    "finetune": lambda bench, _: gpu_finetune.measure(bench, compiled=False),
    "packed": lambda bench, _: gpu_packed.measure(bench),
    "feed": gpu_feed.measure,
    "embed": gpu_embed.measure,
    "compile": lambda bench, _: gpu_finetune.measure(bench, compiled=True),
}
QUICK = tuple(name for name in BENCHMARKS if name != "compile")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what was chosen; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true", help="on the CPU, with tiny models: tries the code")
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), help="default: all; with --small, but compile")
    parser.add_argument("--peak-tflops", type=float, help="dense bfloat16 peak of a device the table does not know")
    chosen = parser.parse_args(arguments)
    if not (chosen.small or torch.cuda.is_available()):
        print("benchmarks.gpu needs a CUDA GPU, and torch sees none; --small runs the code on the CPU", file=sys.stderr)
        return 2
    name = "the CPU" if chosen.small else torch.cuda.get_device_name()
    bench = Bench(
        torch.device("cpu" if chosen.small else "cuda"), chosen.small, peak_flops_of(name, chosen.peak_tflops)
    )
    print(f"\n{machine()}, torch {torch.__version__}, on {name}\n")
    if bench.peak_flops is None:
        print(f"utilisation is left out: the peak of {name} is not known; give --peak-tflops\n")
    print(TABLE_HEAD, flush=True)
    figures: list[Figure] = []
    failed: list[str] = []
    for group in chosen.only or (QUICK if chosen.small else BENCHMARKS):
        with tempfile.TemporaryDirectory() as directory:
            try:
                for figure in BENCHMARKS[group](bench, Path(directory)):
                    print(figure.row(), flush=True)
                    figures.append(figure)
            except Exception:  # noqa: BLE001  time on a GPU is lent: what comes after is measured all the same
                failed.append(group)
                traceback.print_exc()
    print(json.dumps({figure.name: [figure.ours, figure.bare] for figure in figures}))
    if failed:
        print(f"failed, see above: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
