"""Gradient agreement: do the corpora pull the shared head in the same direction?

In: a model and a batch of several corpora. Out: the cosine between the target's gradient on the head and each other
corpus's. 1: the auxiliary loss does the target's work; 0: neither helps nor harms it; −1: works against it.
Losses enter without their weights, which do not change a direction. The cosine of two small batches is noisy: compare
its level over many steps, never single values.

Shape legend: B batch, H shared width, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from uml_core.gradients.batch import Batch
from uml_core.models import SharedHeadModel
from uml_core.models.losses import corpus_losses


def gradient_cosines(model: SharedHeadModel, batch: Batch, target: str, *, world_size: int = 1) -> dict[str, float]:
    """Return cos(∇_head loss_target, ∇_head loss_corpus) in [−1, 1] of every other corpus in the batch.

    Neither gradients nor random state of the training change. A batch without the target (warm start) gives nothing;
    with several ranks, each gives its share of the batch and all get the same numbers.
    """
    if target not in batch.embeddings:
        return {}
    with torch.enable_grad():
        losses = corpus_losses(model(batch.embeddings), batch.labels, batch.global_counts, world_size)
        gradients = {corpus: _over_ranks(model.head.weight, loss, world_size) for corpus, loss in losses.items()}
    return {
        corpus: functional.cosine_similarity(gradients[target], gradient, dim=0).item()
        for corpus, gradient in gradients.items()
        if corpus != target
    }


def _over_ranks(head_CH: Tensor, loss: Tensor, world_size: int) -> Tensor:
    """Return a loss's gradient on the head over all ranks, as one vector (C·H)."""
    gradient = torch.autograd.grad(loss, head_CH)[0].flatten()
    if world_size > 1:
        torch.distributed.all_reduce(gradient)
    return gradient
