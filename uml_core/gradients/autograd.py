"""From a batch to gradients: by autograd for any model, in closed form where the model is linear.

Both are called with a batch, set `.grad` of the model's parameters and return the losses as numbers.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from uml_core.errors import InputError, listing
from uml_core.gradients.shards import gradient_norm
from uml_core.models.losses import weighted_sum

Autocast = Callable[[], contextlib.AbstractContextManager[Any]]
SHOWN_IDS = 5  # of each corpus, where training diverged


class StepBatch(Protocol):
    """One update's batch on one rank."""

    @property
    def global_counts(self) -> dict[str, int]:
        """Samples of each corpus over all ranks."""

    def losses(self, model: nn.Module, world_size: int) -> dict[str, Tensor]:
        """Return each corpus's loss over the joined batch; `model` may be the one that DDP wraps."""


@dataclass(frozen=True)
class Accumulated:
    """A batch in parts that are computed one after another; their gradients add up."""

    parts: tuple[StepBatch, ...]

    @property
    def global_counts(self) -> dict[str, int]:
        """Samples of each corpus over all ranks and parts."""
        return self.parts[0].global_counts

    def losses(self, model: nn.Module, world_size: int) -> dict[str, Tensor]:
        """Return each corpus's loss over the joined batch, all parts at once."""
        by_part = [part.losses(model, world_size) for part in self.parts]
        return {corpus: torch.stack([losses[corpus] for losses in by_part]).sum() for corpus in by_part[0]}


def accumulated(parts: Iterable[StepBatch | None]) -> StepBatch | None:
    """Return a batch of some parts, as it is where there is one; None where no corpus has a sample in it."""
    present = tuple(part for part in parts if part is not None)
    if len(present) <= 1:
        return present[0] if present else None
    return Accumulated(present)


@dataclass(frozen=True)
class StepResult:
    """What is known of a step once its gradients are set: each corpus's mean loss over all ranks."""

    losses: dict[str, float]
    gradient_is_finite: bool = True  # False: it is known not to be


def checked(result: StepResult) -> dict[str, float]:
    """Return a step's losses. Raises NonFiniteError where a loss or the gradient is NaN or infinite."""
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
        """Return the message with ids of rows in place of their numbers, for the corpora that have them."""
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


class Gradient(Protocol):
    """From a batch to the gradients of its weighted loss."""

    def __call__(self, batch: Any) -> StepResult:
        """Set every gradient; the same on every rank."""

    def reweight(self, loss_weight: Mapping[str, float]) -> None:
        """Take other loss weights for the batches to come."""


class AutogradGradient:
    """The gradient of the weighted loss by autograd, over ranks by DDP.

    Args:
        model: from a batch's inputs to logits.
        loss_weight: of each corpus.
        world_size: ranks that train together.
        autocast: opened around every forward pass.
        norms: opened around it, too; it may join the ranks' batch norm (`uml_core.gradients.joined_batch_norm`).
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
        # A step may leave a corpus out, and its projection without gradient.
        self._model = DistributedDataParallel(model, find_unused_parameters=True) if world_size > 1 else model
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
        """Take other weights for the batches to come."""
        self._loss_weight = dict(loss_weight)

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
    """Return the cast to bfloat16 where `train.precision` asks for it; auto does on a GPU."""
    if precision == "bfloat16" or (precision == "auto" and device.type == "cuda"):
        return partial(torch.autocast, device.type, dtype=torch.bfloat16)
    return None
