"""What goes into a step's gradient and what comes out: a batch, then each corpus's loss, or the error that names it.

A `Gradient` is called with a batch, sets `.grad` of the model's parameters and returns the losses as numbers: by
autograd for any model (`uml_core.gradients.autograd`), in closed form where the model is linear
(`uml_core.gradients.closed_form`).

Shape legend: B batch, D embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from uml_core.errors import InputError, listing
from uml_core.models.losses import corpus_losses

SHOWN_IDS = 5  # of each corpus, where training diverged


class StepBatch(Protocol):
    """One update's batch on one rank."""

    @property
    def global_counts(self) -> dict[str, int]:
        """Samples of each corpus over all ranks."""

    def losses(self, model: nn.Module, world_size: int) -> dict[str, Tensor]:
        """Each corpus's loss over the joined batch; `model` may be the one that DDP wraps."""


@dataclass(frozen=True)
class Batch:
    """Embeddings (B, D) and class codes (B,) of each corpus on this rank, and the sizes over all ranks."""

    embeddings: dict[str, Tensor]
    labels: dict[str, Tensor]
    global_counts: dict[str, int]
    label_smoothing: float = 0.0

    def losses(self, model: nn.Module, world_size: int) -> dict[str, Tensor]:
        logits = model(self.embeddings)
        return corpus_losses(logits, self.labels, self.global_counts, world_size, label_smoothing=self.label_smoothing)


@dataclass(frozen=True)
class Accumulated:
    """A batch in parts that are computed one after another; their gradients add up."""

    parts: tuple[StepBatch, ...]

    @property
    def global_counts(self) -> dict[str, int]:
        return self.parts[0].global_counts

    def losses(self, model: nn.Module, world_size: int) -> dict[str, Tensor]:
        by_part = [part.losses(model, world_size) for part in self.parts]
        return {corpus: torch.stack([losses[corpus] for losses in by_part]).sum() for corpus in by_part[0]}


def accumulated(parts: Iterable[StepBatch | None]) -> StepBatch | None:
    """A batch of some parts, as it is where there is one; None where no corpus has a sample in it."""
    present = tuple(part for part in parts if part is not None)
    if len(present) <= 1:
        return present[0] if present else None
    return Accumulated(present)


class Gradient(Protocol):
    """From a batch to the gradients of its weighted loss."""

    def __call__(self, batch: Any) -> StepResult:
        """Set every gradient; the same on every rank."""

    def reweight(self, loss_weight: Mapping[str, float]) -> None:
        """Take other loss weights for the batches to come."""


@dataclass(frozen=True)
class StepResult:
    """What is known of a step once its gradients are set: each corpus's mean loss over all ranks."""

    losses: dict[str, float]
    gradient_is_finite: bool = True  # False: it is known not to be


def checked(result: StepResult) -> dict[str, float]:
    """A step's losses. Raises NonFiniteError where a loss or the gradient is NaN or infinite."""
    bad = tuple(corpus for corpus, loss in result.losses.items() if not math.isfinite(loss))
    if bad or not result.gradient_is_finite:
        raise NonFiniteError(bad, tuple(result.losses))
    return result.losses


class NonFiniteError(InputError):
    """Training diverged: some loss, or the gradient of finite losses, is NaN or infinite.

    Args:
        bad: the corpora whose loss it is; none where it is the gradient.
        corpora: of the update.
        step: of the update, where it is known.
        rows: row numbers of the tables of the corpora to blame, in that step's batch.
    """

    def __init__(
        self,
        bad: tuple[str, ...],
        corpora: tuple[str, ...],
        step: int | None = None,
        rows: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.bad, self.corpora, self.step, self.rows = bad, corpora, step, rows or {}
        numbers = "; ".join(f"{name} {listing(map(str, those))}" for name, those in self.rows.items())
        where = f": rows of that batch, counted from 0 in the store's order: {numbers}" if numbers else ""
        super().__init__(self._message() + where)

    def naming(self, ids: Mapping[str, Sequence[str]]) -> str:
        """The message with ids of rows in place of their numbers, for the corpora that have them."""
        named = [
            f"{corpus} {listing(ids[corpus], limit=SHOWN_IDS)}"
            if corpus in ids
            else f"{corpus} rows {listing(map(str, rows), limit=SHOWN_IDS)} of what is in its place, counted from 0"
            for corpus, rows in self.rows.items()
        ]
        return f"{self._message()}: in that batch: {'; '.join(named)}" if named else str(self)

    def _message(self) -> str:
        what = f"the loss of {', '.join(self.bad)}" if self.bad else f"the gradient of {', '.join(self.corpora)}"
        where = "" if self.step is None else f" at step {self.step}"
        return f"{what} is not finite{where}; lower optim.lr, set optim.clip_norm, or check the embeddings"
