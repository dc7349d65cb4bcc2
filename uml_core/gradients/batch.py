"""A step's batch of embeddings: what the supervised objective takes its gradient of.

Shape legend: B batch, D embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from uml_core.models.losses import corpus_losses


@dataclass(frozen=True)
class Batch:
    """Embeddings (B, D) and class codes (B,) of each corpus on this rank, and the sizes over all ranks."""

    embeddings: dict[str, Tensor]
    labels: dict[str, Tensor]
    global_counts: dict[str, int]
    label_smoothing: float = 0.0

    def losses(self, model: nn.Module, world_size: int) -> dict[str, Tensor]:
        """Return each corpus's cross-entropy, averaged over its global batch."""
        logits = model(self.embeddings)
        return corpus_losses(logits, self.labels, self.global_counts, world_size, label_smoothing=self.label_smoothing)
