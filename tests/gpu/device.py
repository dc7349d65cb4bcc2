"""What the tests on a GPU share: the device, when they are skipped, and how far two runs may be apart."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from uml_core.training.run import TrainingRun

DEVICE = "cuda"
NEEDS_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU"),
]


def on_device(run: TrainingRun) -> TrainingRun:
    """Return the same run, not begun, on the GPU."""
    return TrainingRun(run.experiment, run.data, device=DEVICE)


def in_files(data: Any, directory: Path) -> Any:
    """Return training data whose embeddings are mapped files, which are read ahead."""
    train = {}
    for corpus, rows in data.train.items():
        file = directory / f"{corpus}.f32"
        rows.embeddings.astype(np.float32).tofile(file)
        train[corpus] = replace(rows, embeddings=np.memmap(file, np.float32, "r", shape=rows.embeddings.shape))
    return replace(data, train=train)


def saved_and_loaded(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state as a checkpoint gives it back: on the CPU."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return loaded


def weights_of(run: TrainingRun) -> dict[str, Tensor]:
    """Return a copy of a run's weights on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in run.model.state_dict().items()}


def share_apart(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> float:
    """Return the mean distance of two runs' weights as a share of how far the expected ones have moved from a start.

    On a GPU sums are made in an order of their own, and AdamW turns a gradient that is rounding alone (of a key's bias,
    say) into a whole update: single weights may be far apart in runs that are alike. Their mean may not.
    """
    assert found.keys() == expected.keys()
    names = [name for name, value in expected.items() if value.is_floating_point()]

    def mean(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
        apart = sum((first[name].double() - second[name].double()).abs().sum().item() for name in names)
        return float(apart / sum(expected[name].numel() for name in names))

    return mean(found, expected) / mean(start, expected)
