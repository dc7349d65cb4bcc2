"""Resident feeding: every corpus read once into tensors, every batch an index into them.

In: `TrainingData` and a `MixingPlan`. Out: for any step, this rank's share of each corpus's batch.
A step's batch depends on (seed, step) alone, so resuming needs no reader state.

Shape legend: B batch, D embedding width.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from uml_core.corpora.training_data import LabelledRows, TrainingData
from uml_core.mixing import MixingPlan, SampleStream, rank_slice


@dataclass(frozen=True)
class Batch:
    """Embeddings (B, D) and class codes (B,) of each corpus on this rank, and the sizes over all ranks."""

    embeddings: dict[str, Tensor]
    labels: dict[str, Tensor]
    global_counts: dict[str, int]


class ResidentFeed:
    """Batches by index from tensors that stay on the device."""

    def __init__(
        self,
        data: TrainingData,
        plan: MixingPlan,
        *,
        seed: int,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._plan, self._rank, self._world_size = plan, rank, world_size
        self._device = device
        rows = {corpus: data.train[corpus] for corpus in plan.corpora}
        self._streams = {corpus: SampleStream(corpus, len(rows[corpus]), seed) for corpus in rows}
        self._rows = {corpus: rows[corpus].rows for corpus in rows}
        self._labels = {corpus: as_tensor(rows[corpus].labels).to(device) for corpus in rows}
        self._tables = {corpus: as_tensor(rows[corpus].embeddings).to(device) for corpus in rows}

    def batch(self, step: int, corpora: Sequence[str]) -> Batch:
        """Return the batch of a step for some of its corpora; a fractional ratio may leave a corpus out of a step."""
        embeddings, labels, counts = {}, {}, {}
        for corpus in corpora:
            start, stop = self._plan.sample_range(corpus, step)
            if start == stop:
                continue
            positions = rank_slice(self._streams[corpus].rows(start, stop), self._rank, self._world_size)
            rows = torch.from_numpy(self._rows[corpus][positions]).to(self._device)
            embeddings[corpus] = self._tables[corpus].index_select(0, rows)
            labels[corpus] = self._labels[corpus].index_select(0, torch.from_numpy(positions).to(self._device))
            counts[corpus] = stop - start
        return Batch(embeddings, labels, counts)


def as_tensor(array: npt.NDArray[np.generic]) -> Tensor:
    """Return a tensor over an array's own memory, also when the array is read-only (as in Ray's object store)."""
    with warnings.catch_warnings():
        # Tables are indexed, never written to; sharing them between processes is the point.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def gathered(rows: LabelledRows, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the embeddings (N, D) and labels (N,) of some rows on a device."""
    return torch.from_numpy(rows.gathered()).to(device), as_tensor(rows.labels).to(device)
