"""Batches of a corpus in a file, on their way to one device: `StreamedRows` against a bare loop of pageable copies.

Between two batches the device multiplies matrices, as a step would: what the feed adds to them is what counts. The bare
loop gathers and copies the same samples when they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.figures import Figure
from benchmarks.gpu_device import Bench
from uml_core.config import Experiment, parse_experiment
from uml_core.data.labelled_rows import LabelledRows
from uml_core.feed.mixing import MixingPlan, SampleStream
from uml_core.feed.read_ahead import StreamedRows
from uml_core.gradients.ranks import RankContext

ROWS, WIDTH, BATCH, STEPS, SIDE = 200_000, 1024, 4096, 200, 4096
SMALL_ROWS, SMALL_WIDTH, SMALL_BATCH, SMALL_STEPS, SMALL_SIDE = 400, 8, 16, 10, 16


def measure(bench: Bench, directory: Path) -> Iterator[Figure]:
    """Measure steps/s with the feed, with the bare loop, and share of the matrix products alone."""
    full = (ROWS, WIDTH, BATCH, STEPS, SIDE)
    small = (SMALL_ROWS, SMALL_WIDTH, SMALL_BATCH, SMALL_STEPS, SMALL_SIDE)
    num_rows, width, batch, steps, side = small if bench.small else full
    table_ND = np.memmap(directory / "table", np.float32, "w+", shape=(num_rows, width))
    table_ND[:] = 1
    table_ND.flush()
    rows = LabelledRows(np.memmap(directory / "table", np.float32, "r", shape=(num_rows, width)), *_numbers(num_rows))
    settings = _experiment(batch, steps)
    plan, ranks = MixingPlan.from_experiment(settings), RankContext(bench.device)
    streamed = StreamedRows(settings, rows, plan, "target", ranks, memory_bytes=table_ND.nbytes)
    streamed.samples(0, range(batch))  # the first block is read, and the second one begun
    stream, product = SampleStream("target", num_rows, settings.seed), torch.ones(side, side, device=bench.device)

    def ours(step: int) -> torch.Tensor:
        return streamed.samples(step, range(step * batch, (step + 1) * batch))[0]

    def bare(step: int) -> torch.Tensor:
        samples = stream.rows(step * batch, (step + 1) * batch)
        return torch.from_numpy(table_ND[samples]).to(bench.device)

    (product @ product).sum().item()  # warm-up
    seconds = {}
    for name, feed in (("alone", None), ("ours", ours), ("bare", bare)):

        def run(feed=feed) -> None:
            for step in range(steps):
                value = product.sum() if feed is None else feed(step).sum()
                (product @ product).sum().add(value).item()  # a step looks at its loss

        seconds[name] = bench.seconds_of(run)
    label = f"batches of {batch} rows of {width} from a file: steps/s"
    yield Figure(label, steps / seconds["ours"], steps / seconds["bare"])
    yield Figure(f"{label}, against no batches at all", steps / seconds["ours"], steps / seconds["alone"])


def _numbers(count: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(count), np.zeros(count, dtype=np.int64)


def _experiment(batch: int, steps: int) -> Experiment:
    corpora = {"target": {"modality": "vector", "format": "embeddings", "path": "target"}}
    train = {"max_steps": steps, "eval_every": steps, "batch_size": batch}
    return parse_experiment({"name": "gpu", "store": "store", "target": "target", "corpora": corpora, "train": train})
