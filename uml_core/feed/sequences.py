"""Batches of a self-supervised run: sequences of every corpus, packed, with what is to be predicted from them.

In: `SequenceData` and a `MixingPlan`. Out: for any step, this rank's share of each corpus's batch. A batch depends on
(seed, step) alone, dropout and hidden tokens among it, so a resumed run needs no reader state.

The two tasks (docs/method.md, Self-supervised). next_token: every token from those before it. A causal model never
looks back from a sequence's last token, and nothing is predicted from it: it stays out of the input, one row less a
sequence, and neither loss nor gradient changes. masked_token: hidden tokens from all others. Sequences of one token are
reconstructed in both.

Shape legend: S sequences, R input rows, M predicted tokens, D token width.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from uml_core.data.sequence_data import SequenceData, token_positions
from uml_core.feed.embeddings import as_tensor
from uml_core.feed.mixing import WHOLE, MixingPlan, Part, SampleStream, rank_share
from uml_core.gradients.ranks import RankContext
from uml_core.models.losses import token_losses
from uml_core.models.seeding import generator_of
from uml_core.models.sequence.packing import pack
from uml_core.models.sequence.sequence_model import SequenceModel, TrunkInputs
from uml_core.transfer.start import without_gradients

Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class SequenceBatch:
    """Model inputs and targets of this rank; counts of sequences and of predicted tokens over all ranks."""

    inputs: TrunkInputs
    targets: dict[str, Tensor]  # (M, D), or (M,) of discrete tokens
    global_counts: dict[str, int]
    global_targets: dict[str, int]
    weight: float = 1.0  # 0 on a rank without a sequence of its own: it takes part with one that does not count
    frozen: tuple[nn.Parameter, ...] = ()  # not trained in this step

    def losses(self, model: nn.Module, world_size: int) -> dict[str, Tensor]:
        with without_gradients(self.frozen):
            predictions = model(self.inputs)
        losses = token_losses(predictions, self.targets, self.global_targets, world_size)
        return losses if self.weight == 1 else {corpus: self.weight * loss for corpus, loss in losses.items()}


class SequenceFeed:
    """Batches by index from tokens that stay on the device."""

    def __init__(
        self, data: SequenceData, plan: MixingPlan, model: SequenceModel, *, seed: int, ranks: RankContext
    ) -> None:
        self._data, self._plan, self._model, self._seed = data, plan, model, seed
        self._rank, self._world_size, self._device = ranks.rank, ranks.world_size, ranks.device
        self._streams = {corpus: SampleStream(corpus, len(data.train[corpus]), seed) for corpus in plan.corpora}
        self._tokens = {corpus: as_tensor(data.train[corpus].table.tokens).to(self._device) for corpus in plan.corpora}

    def batch(self, step: int, corpora: Sequence[str], part: Part = WHOLE) -> SequenceBatch | None:
        """The batch of a step for some of its corpora; None where a fractional ratio leaves all of them out."""
        rank, world_size = part.as_rank(self._rank, self._world_size)
        ranges = {corpus: self._plan.sample_range(corpus, step) for corpus in corpora}
        drawn = {
            corpus: self._streams[corpus].rows(start, stop) for corpus, (start, stop) in ranges.items() if start < stop
        }
        if not drawn:
            return None
        own = {corpus: np.arange(len(rows))[rank_share(len(rows), rank, world_size)] for corpus, rows in drawn.items()}
        has_any = any(map(len, own.values()))
        if not has_any:
            own[next(iter(own))] = np.zeros(1, dtype=np.int64)
        lengths = {corpus: self._data.train[corpus].lengths[rows] for corpus, rows in drawn.items()}
        hidden = {corpus: self._hidden(corpus, lengths[corpus], step) for corpus in drawn}
        tasks = {corpus: self._task(corpus, drawn[corpus], own[corpus], hidden[corpus]) for corpus in drawn}
        return SequenceBatch(
            self._inputs(tasks, generator_of(self._seed, "dropout", step, rank, *drawn)),
            {corpus: self._tokens_at(corpus, task.target_indices) for corpus, task in tasks.items()},
            {corpus: len(rows) for corpus, rows in drawn.items()},
            {corpus: num_targets(lengths[corpus], hidden[corpus]) for corpus in drawn},
            weight=float(has_any),
        )

    def _hidden(self, corpus: str, lengths: Indices, step: int) -> Mask | None:
        """The hidden tokens of the joined batch: every rank draws them all, and takes its own."""
        if self._model.causal:
            return None
        share = self._model.config.masked_share
        return hidden_tokens(lengths, share, seed=self._seed, step=step, corpus=corpus)

    def _task(self, corpus: str, rows: Indices, own: Indices, hidden: Mask | None) -> Prediction:
        train = self._data.train[corpus]
        starts, lengths = train.starts[rows], train.lengths[rows]
        if hidden is None:
            return next_token(starts[own], lengths[own])
        is_own = np.isin(np.repeat(np.arange(len(rows)), lengths), own)
        return masked_token(starts[own], lengths[own], hidden[is_own])

    def _inputs(self, tasks: dict[str, Prediction], generator: torch.Generator) -> TrunkInputs:
        lengths = np.concatenate([task.input_lengths for task in tasks.values()])
        return TrunkInputs(
            {corpus: self._tokens_at(corpus, task.input_indices) for corpus, task in tasks.items()},
            pack(lengths, causal=self._model.causal, device=self._device),
            generator,
            hidden={
                corpus: torch.from_numpy(task.hidden[:, None]).to(self._device)
                for corpus, task in tasks.items()
                if task.hidden is not None
            },
            scored={
                corpus: torch.from_numpy(task.scored).to(self._device)
                for corpus, task in tasks.items()
                if task.scored is not None
            },
        )

    def _tokens_at(self, corpus: str, indices: Indices) -> Tensor:
        index = torch.from_numpy(indices).to(self._device)
        return self._model.standardized(corpus, self._tokens[corpus].index_select(0, index))


@dataclass(frozen=True)
class Prediction:
    """What a task makes of S sequences: indices of input and target tokens in the table.

    `hidden` (R,) are input rows the model must not see, `scored` (M,) the rows to predict from; None: no row, all rows.
    """

    input_lengths: Indices
    input_indices: Indices
    target_indices: Indices
    hidden: Mask | None = None
    scored: Indices | None = None


def next_token(starts: Indices, lengths: Indices) -> Prediction:
    """The task of predicting every token but the first; a sequence of one token predicts itself."""
    input_lengths = np.maximum(lengths - 1, 1)
    indices = token_positions(starts, input_lengths)
    ahead = np.repeat((lengths > 1).astype(np.int64), input_lengths)
    return Prediction(input_lengths, indices, indices + ahead)


def masked_token(starts: Indices, lengths: Indices, hidden: Mask) -> Prediction:
    """The task of predicting the hidden tokens; a sequence of one token predicts itself, in sight."""
    indices = token_positions(starts, lengths)
    scored = hidden | np.repeat(lengths == 1, lengths)
    return Prediction(lengths, indices, indices[scored], hidden, np.flatnonzero(scored))


def hidden_tokens(lengths: Indices, share: float, *, seed: int, step: int, corpus: str) -> Mask:
    """Draw which tokens of some sequences are hidden (R,): each with probability `share`, and at least one a sequence.

    The only token of a sequence is never hidden.
    """
    rng = np.random.default_rng([seed % 2**32, zlib.crc32(corpus.encode()), step])
    lot = rng.random(int(lengths.sum()))
    first = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    lowest = np.repeat(np.minimum.reduceat(lot, first), lengths)
    hidden: Mask = ((lot < share) | (lot == lowest)) & np.repeat(lengths > 1, lengths)
    return hidden


def num_targets(lengths: Indices, hidden: Mask | None) -> int:
    """How many tokens are predicted in sequences of some lengths: of all ranks, known to every one of them."""
    if hidden is None:
        return int(np.maximum(lengths - 1, 1).sum())
    return int(hidden.sum() + (lengths == 1).sum())
