"""Dropout masks at a tenth of the usual cost on a CPU: one byte of a random 64-bit integer decides one unit.

torch draws a Bernoulli number a unit (7 to 10 ns each, measured), which is more time than the products of the layer it
regularises. Eight bits make p a multiple of 1/256: .1 becomes 26/256. The scale 1 / (1 − p) uses that p, so the
expected value is kept exactly.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEVELS = 256  # values of a random byte


def effective_dropout(p: float) -> float:
    """Return the probability that is drawn for a wanted p: the nearest multiple of 1/256."""
    return round(p * LEVELS) / LEVELS


def keep_mask(shape: tuple[int, ...], p: float, *, generator: torch.Generator, device: torch.device) -> Tensor:
    """Return a mask of uint8, 1 with probability 1 − `effective_dropout(p)` and else 0, decided by the generator.

    The generator is one of the CPU; for another device it draws the seed of that device's own.
    """
    dropped = round(p * LEVELS)
    if not dropped:
        return torch.ones(shape, dtype=torch.uint8, device=device)
    if device.type != "cpu":
        seed = int(torch.randint(2**62, (), generator=generator))
        there = torch.Generator(device).manual_seed(seed)
        return torch.randint(LEVELS, shape, dtype=torch.uint8, device=device, generator=there).ge_(dropped)
    count = math.prod(shape)
    # `random_` without bounds leaves the sign bit of an int64 at 0, so its highest byte is not uniform. It draws all
    # 64 bits from `from` on where the range is the whole of int64.
    words = torch.empty(-(-count // 8), dtype=torch.int64)
    words.random_(torch.iinfo(torch.int64).min, None, generator=generator)
    mask = words.view(torch.uint8)[:count]
    # Bytes below `dropped` become 0 and all others 1, with two operations that run 64 bytes at a time.
    return mask.clamp_(dropped - 1, dropped).sub_(dropped - 1).view(shape)


def drop(values: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """Return dropout of `values` (any shape)."""
    mask = keep_mask(tuple(values.shape), p, generator=generator, device=values.device)
    return values * mask.to(values.dtype).mul_(1 / (1 - effective_dropout(p)))
