"""What batch norm over all workers costs a training step, against each worker's own.

    python -m benchmarks.joined_batch_norm

Two processes of one thread train timm's tf_efficientnet_lite0 (random weights) by DDP over gloo, 16 pictures of
224 × 224 pixels each. Both ways alternate in the same processes; prints the median of their steps.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time

import timm
import torch
import torch.distributed
import torch.multiprocessing
from torch.nn.parallel import DistributedDataParallel

from benchmarks.figures import machine
from uml_core.gradients.joined_batch_norm import JoinedBatchNorm

MODEL, SIDE, CLASSES, BATCH, ROUNDS = "tf_efficientnet_lite0", 224, 10, 16, 12
WAYS = {"each worker's own": contextlib.nullcontext, "over all workers": JoinedBatchNorm}


def main() -> None:
    """Measure both ways in fresh processes and print them."""
    print(f"{machine()}, {MODEL} at {SIDE} pixels, two workers, {BATCH} pictures each")
    with tempfile.TemporaryDirectory() as directory:
        torch.multiprocessing.spawn(_rank, (directory,), nprocs=2)


def _rank(rank: int, directory: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{directory}/meeting", rank=rank, world_size=2)
    torch.manual_seed(rank)
    model = timm.create_model(MODEL, num_classes=CLASSES).to(memory_format=torch.channels_last)
    ranks = DistributedDataParallel(model)
    pictures = torch.randn(BATCH, 3, SIDE, SIDE).to(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (BATCH,))
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(1 + ROUNDS):
        for name, way in WAYS.items():
            started = time.perf_counter()
            with way():
                loss = torch.nn.functional.cross_entropy(ranks(pictures), labels)
            loss.backward()
            seconds[name].append(time.perf_counter() - started)
    if rank == 0:
        own, joined = (statistics.median(each[1:]) for each in seconds.values())
        print(f"s a step: {own:.2f} with each worker's own, {joined:.2f} over all workers ({joined / own:.2f} times)")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
