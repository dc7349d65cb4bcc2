"""Losses: cross-entropy summed over corpora with their weights.

Shape legend: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


def corpus_losses(
    logits: Mapping[str, Float[Tensor, "_ C"]],
    labels: Mapping[str, Int[Tensor, " _"]],
    global_counts: Mapping[str, int],
    world_size: int = 1,
    *,
    label_smoothing: float = 0.0,
) -> dict[str, Float[Tensor, ""]]:
    """Return each corpus's cross-entropy, averaged over its global batch.

    With label smoothing ε a label is 1 − ε on its class and ε / C on every class, its own among them.

    On one of `world_size` ranks the local sum is divided by the global count and multiplied by world_size, so that the
    mean that DDP takes over ranks is the mean over the joined batch, also when the shares are unequal or empty.
    """
    return {
        corpus: functional.cross_entropy(
            logits_BC.float(), labels[corpus], reduction="sum", label_smoothing=label_smoothing
        )
        * (world_size / max(1, global_counts[corpus]))
        for corpus, logits_BC in logits.items()
    }


def weighted_sum(losses: Mapping[str, Float[Tensor, ""]], weights: Mapping[str, float]) -> Float[Tensor, ""]:
    """Return Σ_k weight_k · loss_k (the paper's CE_X + λ · CE_Y)."""
    terms = [weights[corpus] * loss for corpus, loss in losses.items()]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def token_losses(
    predictions: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    global_targets: Mapping[str, int],
    world_size: int = 1,
) -> dict[str, Tensor]:
    """Return each corpus's loss, averaged over the predicted tokens of its global batch (and over features).

    On one of `world_size` ranks the local sum is divided by the global count and multiplied by world_size: the mean
    that DDP takes over ranks is the mean over the joined batch.

    Args:
        predictions: (M, D), or logits (M, V) where targets are discrete.
        targets: (M, D), or whole numbers (M,).
        global_targets: M over all ranks.
        world_size: ranks.
    """
    losses = {}
    for corpus, prediction in predictions.items():
        target, share = targets[corpus], world_size / max(1, global_targets[corpus])
        if target.is_floating_point():
            losses[corpus] = squared_error(prediction.float(), target, share / target.shape[1])
        else:
            losses[corpus] = functional.cross_entropy(prediction.float(), target, reduction="sum") * share
    return losses


def squared_error(prediction_MD: Tensor, target_MD: Tensor, factor: float) -> Tensor:
    """Return factor · Σ (prediction − target)²; over wide tokens a third of the passes of `functional.mse_loss`."""
    error: Tensor = _SquaredError.apply(prediction_MD, target_MD, factor)
    return error


class _SquaredError(torch.autograd.Function):
    """Keeps the difference and scales it in place on the way back; targets get no gradient."""

    @staticmethod
    def forward(ctx: Any, prediction_MD: Tensor, target_MD: Tensor, factor: float) -> Tensor:
        difference = (prediction_MD - target_MD).reshape(-1)
        ctx.difference, ctx.shape, ctx.factor = difference, prediction_MD.shape, factor
        return torch.dot(difference, difference) * factor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return (ctx.difference * (grad * (2 * ctx.factor))).view(ctx.shape), None, None
