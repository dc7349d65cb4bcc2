"""The gradient of any model by autograd, over ranks by DDP; and whether corpora's gradients agree.

Shape legend: C classes, H shared width.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from uml_core.gradients.batch import Accumulated, Batch, StepBatch, StepResult
from uml_core.gradients.ranks import gradient_norm
from uml_core.models.losses import corpus_losses, weighted_sum
from uml_core.models.shared_head import SharedHeadModel

Autocast = Callable[[], contextlib.AbstractContextManager[Any]]


class AutogradGradient:
    """The gradient of the weighted loss by autograd, over ranks by DDP.

    `autocast` and `norms` are opened around every forward pass; the latter may join the ranks' batch norm.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_weight: Mapping[str, float],
        *,
        world_size: int = 1,
        autocast: Autocast = contextlib.nullcontext,
        norms: Autocast = contextlib.nullcontext,
    ) -> None:
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._model = self._over_ranks(model) if world_size > 1 else model
        self._loss_weight, self._world_size = dict(loss_weight), world_size
        self._autocast, self._norms = autocast, norms

    def __call__(self, batch: StepBatch) -> StepResult:
        """Set the gradients; parameters that the batch does not reach get none."""
        for parameter in self._parameters:
            parameter.grad = None
        parts = batch.parts if isinstance(batch, Accumulated) else (batch,)
        by_part = [self._add(part, is_last=part is parts[-1]) for part in parts]
        corpora = list(by_part[0])
        losses_K = torch.stack([torch.stack([part[corpus] for part in by_part]).sum() for corpus in corpora])
        if self._world_size > 1:
            torch.distributed.all_reduce(losses_K)
            losses_K /= self._world_size
        norm = gradient_norm(self._parameters)
        *means, norm_value = torch.cat([losses_K, norm.view(1).to(losses_K)]).tolist()
        return StepResult(dict(zip(corpora, means, strict=True)), math.isfinite(norm_value))

    def reweight(self, loss_weight: Mapping[str, float]) -> None:
        self._loss_weight = dict(loss_weight)

    def _over_ranks(self, model: nn.Module) -> nn.Module:
        # A step may leave a corpus out, and its projection without gradient.
        return DistributedDataParallel(model, find_unused_parameters=True)

    def _add(self, part: StepBatch, *, is_last: bool) -> dict[str, Tensor]:
        """Add a part's gradient; returns its losses. Ranks are summed with the last part."""
        with contextlib.ExitStack() as waiting:
            if isinstance(self._model, DistributedDataParallel) and not is_last:
                waiting.enter_context(self._model.no_sync())
            with self._autocast(), self._norms():
                losses = part.losses(self._model, self._world_size)
                total = weighted_sum(losses, self._loss_weight)
            total.backward()  # type: ignore[no-untyped-call]
        return {corpus: loss.detach() for corpus, loss in losses.items()}


def autocast_of(precision: str, device: torch.device) -> Autocast | None:
    """The cast to bfloat16 where `train.precision` asks for it; auto does on a GPU."""
    if precision == "bfloat16" or (precision == "auto" and device.type == "cuda"):
        return partial(torch.autocast, device.type, dtype=torch.bfloat16)
    return None


def gradient_cosines(model: SharedHeadModel, batch: Batch, target: str, *, world_size: int = 1) -> dict[str, float]:
    """The cosine of ∇_head loss_target and ∇_head loss_corpus, in [−1, 1], for every other corpus in the batch.

    1: the auxiliary loss does the target's work; 0: neither helps nor harms it; −1: works against it. Losses enter
    without their weights, which do not change a direction. The cosine of two small batches is noisy: compare its level
    over many steps, never single values.

    Neither gradients nor random state of the training change. A batch without the target (warm start) gives nothing;
    with several ranks, each gives its share of the batch and all get the same numbers.
    """
    if target not in batch.embeddings:
        return {}
    with torch.enable_grad():
        losses = corpus_losses(model(batch.embeddings), batch.labels, batch.global_counts, world_size)
        gradients = {corpus: _head_gradient(model.head.weight, loss, world_size) for corpus, loss in losses.items()}
    return {
        corpus: functional.cosine_similarity(gradients[target], gradient, dim=0).item()
        for corpus, gradient in gradients.items()
        if corpus != target
    }


def _head_gradient(head_CH: Tensor, loss: Tensor, world_size: int) -> Tensor:
    """A loss's gradient on the head over all ranks, as one vector (C·H)."""
    gradient = torch.autograd.grad(loss, head_CH)[0].flatten()
    if world_size > 1:
        torch.distributed.all_reduce(gradient)
    return gradient
