"""Feeding: for any step, this rank's share of each corpus's batch of embeddings.

In: `TrainingData` and a `MixingPlan`. Out: batches. A corpus in memory is indexed; one in a file is read ahead
(`uml_core.feed.read_ahead`). Either way a batch depends on (seed, step) alone, so resuming needs no reader state.
Which rows come is looked up for many steps at a time; a step itself only slices and gathers.

Shape legend: B batch, D embedding width.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from uml_core.config import Experiment
from uml_core.data.labelled_rows import LabelledRows
from uml_core.data.training_data import TrainingData
from uml_core.errors import InputError, listing
from uml_core.feed.mixing import WHOLE, MixingPlan, Part, SampleStream, rank_share
from uml_core.feed.read_ahead import StreamedRows, block_bytes
from uml_core.gradients.batch import Batch
from uml_core.gradients.ranks import RankContext
from uml_core.store.mapped_table import is_mapped

BLOCK_SAMPLES = 8192  # of a corpus's stream, looked up at once


class EmbeddingFeed:
    """Batches of embeddings: of each corpus from tensors that stay on the device, or read ahead from its file."""

    def __init__(self, experiment: Experiment, data: TrainingData, plan: MixingPlan, ranks: RankContext) -> None:
        self._plan, self._ranks, self._label_smoothing = plan, ranks, experiment.train.label_smoothing
        train = {corpus: data.train[corpus] for corpus in plan.corpora}
        memory = block_bytes(experiment.feed.memory_gib, train)
        self._sources: dict[str, ResidentRows | StreamedRows] = {
            corpus: StreamedRows(experiment, rows, plan, corpus, ranks, memory_bytes=memory[corpus])
            if corpus in memory
            else ResidentRows(rows, SampleStream(corpus, len(rows), experiment.seed), ranks.device)
            for corpus, rows in train.items()
        }

    def batch(self, step: int, corpora: Sequence[str], part: Part = WHOLE) -> Batch:
        """The batch of a step for some of its corpora; a fractional ratio may leave a corpus out of a step."""
        rank, world_size = part.as_rank(self._ranks.rank, self._ranks.world_size)
        embeddings, labels, counts = {}, {}, {}
        for corpus in corpora:
            start, stop = self._plan.sample_range(corpus, step)
            if start == stop:
                continue
            positions = range(start, stop)[rank_share(stop - start, rank, world_size)]
            embeddings[corpus], labels[corpus] = self._sources[corpus].samples(step, positions)
            counts[corpus] = stop - start
        return Batch(embeddings, labels, counts, self._label_smoothing)


class WholeFeed:
    """All rows of every corpus at every step, for a solver. Raises InputError where they do not fit in memory."""

    def __init__(self, experiment: Experiment, data: TrainingData, plan: MixingPlan, ranks: RankContext) -> None:
        mapped = [corpus for corpus in plan.corpora if is_mapped(data.train[corpus].embeddings)]
        if mapped:
            raise InputError(
                f"optim.name is lbfgs, which takes all rows at once, and {listing(mapped)} does not fit into "
                f"feed.memory_gib {experiment.feed.memory_gib:g}; raise it, or set optim.name=adamw"
            )
        embeddings, labels, counts = {}, {}, {}
        for corpus in plan.corpora:
            rows = data.train[corpus]
            share = rank_share(len(rows), ranks.rank, ranks.world_size)
            own = replace(rows, rows=rows.rows[share], labels=rows.labels[share])
            embeddings[corpus], labels[corpus] = gathered(own, ranks.device)
            counts[corpus] = len(rows)
        self._batch = Batch(embeddings, labels, counts, experiment.train.label_smoothing)

    def batch(self, step: int, corpora: Sequence[str], part: Part = WHOLE) -> Batch:
        """All rows; a solver's experiment has one group of corpora, and no parts."""
        return self._batch


class ResidentRows:
    """One corpus's endless sample stream over a table that stays on the device."""

    def __init__(self, rows: LabelledRows, stream: SampleStream, device: torch.device) -> None:
        self._stream, self._device = stream, device
        # The whole table, not the corpus's rows of it: processes share its memory, and rows would be a copy in each.
        self._table_ND = as_tensor(rows.embeddings).to(device)
        self._table_rows, self._labels = rows.rows, rows.labels
        self._start = self._stop = 0
        self._block_rows = self._block_labels = torch.empty(0, dtype=torch.int64)

    def samples(self, step: int, positions: range) -> tuple[Tensor, Tensor]:
        """Embeddings (B, D) and labels (B,) at positions of the stream, which are this rank's of a step."""
        if positions.start < self._start or positions.stop > self._stop:
            self._load(positions.start, max(positions.stop, positions.start + BLOCK_SAMPLES))
        picked = slice(positions.start - self._start, positions.stop - self._start)
        return self._table_ND.index_select(0, self._block_rows[picked]), self._block_labels[picked]

    def _load(self, start: int, stop: int) -> None:
        positions = self._stream.rows(start, stop)
        self._block_rows = torch.from_numpy(self._table_rows[positions]).to(self._device)
        self._block_labels = torch.from_numpy(self._labels[positions]).to(self._device)
        self._start, self._stop = start, stop


def as_tensor(array: npt.NDArray[np.generic]) -> Tensor:
    """A tensor over an array's own memory, also when the array is read-only (as in Ray's object store)."""
    with warnings.catch_warnings():
        # Tables are indexed, never written to; sharing them between processes is the point.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def gathered(rows: LabelledRows, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(rows.gathered()).to(device), as_tensor(rows.labels).to(device)
