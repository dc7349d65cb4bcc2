"""From a batch to gradients: by autograd for any model, in closed form where the model is linear.

Both are called with a batch, set `.grad` of the model's parameters and return each corpus's loss as numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from uml_core.feed import Batch
from uml_core.losses import corpus_losses, weighted_sum

Gradient = Callable[[Batch], dict[str, float]]  # each corpus's mean loss over the global batch, in nats


class AutogradGradient:
    """The gradient of the weighted loss by autograd, over ranks by DDP, under autocast where asked."""

    def __init__(
        self,
        model: nn.Module,
        loss_weight: Mapping[str, float],
        *,
        world_size: int = 1,
        autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> None:
        self._parameters = list(model.parameters())
        # A step may leave a corpus out, and its projection without gradient.
        self._model = DistributedDataParallel(model, find_unused_parameters=True) if world_size > 1 else model
        self._loss_weight, self._world_size, self._autocast = dict(loss_weight), world_size, autocast

    def __call__(self, batch: Batch) -> dict[str, float]:
        """Set the gradients; parameters that the batch does not reach get none."""
        for parameter in self._parameters:
            parameter.grad = None
        with self._autocast():
            losses = corpus_losses(self._model(batch.embeddings), batch.labels, batch.global_counts, self._world_size)
            total = weighted_sum(losses, self._loss_weight)
        total.backward()  # type: ignore[no-untyped-call]
        losses_K = torch.stack(list(losses.values())).detach()
        if self._world_size > 1:
            torch.distributed.all_reduce(losses_K)
            losses_K /= self._world_size
        return dict(zip(losses, losses_K.tolist(), strict=True))
