"""How many rows an encoder encodes at once: measured on the machine that runs it, under a limit of memory."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from uml_core.encoders.base import Decoded, Encoder, plan_batches


def choose_batch_size(
    encoder: Encoder, rows: Sequence[Decoded], *, device: str = "cpu", limit_bytes: int | None = None
) -> int:
    """Return a batch size for `encoder.encode_all` whose batches stay under a memory limit; `encoder` is loaded.

    Starts at what is fast on the device and halves until a batch of copies of the costliest row, run for the purpose,
    needs no more than the limit beyond the weights. On a CPU that start is small on purpose: 8 pictures, or 16 times 32
    tokens, keep the cores busy, and larger batches only spill the caches (measured: docs/measured.md).

    Args:
        encoder: loaded on `device`.
        rows: decoded rows, those of the first part say.
        device: where the encoder was loaded.
        limit_bytes: for activations. None: half of what is free on the device.
    """
    on_gpu = device.startswith("cuda")
    limit = _free_bytes(device) // 2 if limit_bytes is None else limit_bytes
    batch_size = encoder.gpu_batch_size if on_gpu else encoder.cpu_batch_size
    if not rows:
        return batch_size
    costliest = max(rows, key=encoder.cost)
    measure = _peak_gpu_bytes if on_gpu else _peak_cpu_bytes
    encoder.encode([costliest])  # what is allocated once and kept (kernels, workspaces) is not the batch's
    while batch_size > 1:
        costs = [encoder.cost(costliest)] * batch_size
        (batch, *_) = plan_batches(costs, batch_size=batch_size, unit_cost=encoder.unit_cost)
        if measure(functools.partial(encoder.encode, [costliest] * len(batch))) <= limit:
            break
        batch_size //= 2
    return batch_size


def _free_bytes(device: str) -> int:
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil  # a logged model is served without it

    return int(psutil.virtual_memory().available)


def _peak_gpu_bytes(run: Callable[[], object]) -> int:
    """The bytes a call allocates at its peak; more than any limit if they are not to be had."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    try:
        run()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return sys.maxsize
    return int(torch.cuda.max_memory_allocated() - before)


def _peak_cpu_bytes(run: Callable[[], object]) -> int:
    """How far a call raises this process's resident memory at its peak, in bytes; 0 where the system does not say."""
    try:
        # Linux with glibc: give freed memory back, so that what the call needs is seen, and forget the peak so far.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = _resident_bytes("VmRSS")
        run()
        return max(0, _resident_bytes("VmHWM") - before)
    except (OSError, AttributeError):
        return 0


def _resident_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
