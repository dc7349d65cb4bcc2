"""Losses: cross-entropy summed over corpora with their weights.

Shape legend: B batch, C classes.
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
