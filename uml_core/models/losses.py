"""Losses of each corpus, cross-entropy or squared error, and their sum with the corpora's weights.

Shape legend: B batch, C classes, M predicted tokens, D token width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional


def corpus_losses(
    logits: Mapping[str, Float[Tensor, "_ C"]],
    labels: Mapping[str, Int[Tensor, " _"]],
    global_counts: Mapping[str, int],
    world_size: int = 1,
    *,
    label_smoothing: float = 0.0,
) -> dict[str, Float[Tensor, ""]]:
    """Each corpus's cross-entropy, averaged over its global batch.

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
    """Σ_k weight_k · loss_k (the paper's CE_X + λ · CE_Y)."""
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
    """Each corpus's loss, averaged over the predicted tokens of its global batch (and over features).

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
            error = functional.mse_loss(prediction.float(), target, reduction="sum")
            losses[corpus] = error * (share / target.shape[1])
        else:
            losses[corpus] = functional.cross_entropy(prediction.float(), target, reduction="sum") * share
    return losses
