"""From a batch to gradients: by autograd for any model, in closed form where the model is linear.

Both are called with a batch, set `.grad` of the model's parameters and return each corpus's loss as numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from uml_core.losses import weighted_sum

Autocast = Callable[[], contextlib.AbstractContextManager[Any]]


class StepBatch(Protocol):
    """One update's batch on one rank."""

    @property
    def global_counts(self) -> dict[str, int]:
        """Samples of each corpus over all ranks."""

    def losses(self, model: nn.Module, world_size: int) -> dict[str, Tensor]:
        """Return each corpus's loss over the joined batch; `model` may be the one that DDP wraps."""


class Gradient(Protocol):
    """From a batch to the gradients of its weighted loss."""

    def __call__(self, batch: Any) -> dict[str, float]:
        """Set every gradient; returns each corpus's mean loss over the global batch."""

    def reweight(self, loss_weight: Mapping[str, float]) -> None:
        """Take other loss weights for the batches to come."""


class AutogradGradient:
    """The gradient of the weighted loss by autograd, over ranks by DDP, under autocast where asked."""

    def __init__(
        self,
        model: nn.Module,
        loss_weight: Mapping[str, float],
        *,
        world_size: int = 1,
        autocast: Autocast = contextlib.nullcontext,
    ) -> None:
        self._parameters = list(model.parameters())
        # A step may leave a corpus out, and its projection without gradient.
        self._model = DistributedDataParallel(model, find_unused_parameters=True) if world_size > 1 else model
        self._loss_weight, self._world_size, self._autocast = dict(loss_weight), world_size, autocast

    def __call__(self, batch: StepBatch) -> dict[str, float]:
        """Set the gradients; parameters that the batch does not reach get none."""
        for parameter in self._parameters:
            parameter.grad = None
        with self._autocast():
            losses = batch.losses(self._model, self._world_size)
            total = weighted_sum(losses, self._loss_weight)
        total.backward()  # type: ignore[no-untyped-call]
        losses_K = torch.stack(list(losses.values())).detach()
        if self._world_size > 1:
            torch.distributed.all_reduce(losses_K)
            losses_K /= self._world_size
        return dict(zip(losses, losses_K.tolist(), strict=True))

    def reweight(self, loss_weight: Mapping[str, float]) -> None:
        """Take other weights for the batches to come."""
        self._loss_weight = dict(loss_weight)


def autocast_of(precision: str, device: torch.device) -> Autocast | None:
    """Return the cast to bfloat16 where `train.precision` asks for it; auto does on a GPU."""
    if precision == "bfloat16" or (precision == "auto" and device.type == "cuda"):
        return partial(torch.autocast, device.type, dtype=torch.bfloat16)
    return None
