"""Initial weights by (seed, name): arms that differ in one part of the model start equal in all others."""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch
from torch import nn


def generator_of(seed: int, *keys: int | str) -> torch.Generator:
    """A generator on the CPU for a seed and what it is for."""
    hashed = [zlib.crc32(key.encode()) if isinstance(key, str) else key % 2**32 for key in keys]
    # torch's CPU generator reads 32 bits of a seed: seed and keys are hashed into them.
    stream = np.random.SeedSequence([seed % 2**32, *hashed])
    return torch.Generator().manual_seed(int(stream.generate_state(1)[0]))


def initialise(model: nn.Module, seed: int) -> None:
    """Draw every matrix in place from nn.Linear's own range, ±1/√(inputs), each from its own stream; biases are 0."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            bound = 1 / math.sqrt(parameter.shape[1])
            nn.init.uniform_(parameter, -bound, bound, generator=generator_of(seed, name))
        elif name.endswith(".bias"):
            nn.init.zeros_(parameter)
