"""What is added up of the corpora that a solved head is fitted to, from their rows as the store has them.

In: rows of the target, or of an auxiliary corpus that may write the head's prior. Out: `RowStatistics`. Light to
import, because tasks do it.

Shape legend: N rows, D embedding width.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from uml_core.config import Experiment
from uml_core.data.labelled_rows import LabelledRows
from uml_core.data.row_statistics import Block, RowStatistics, added_up, kept_places, places_of, rows_at_once
from uml_core.data.training_data import TrainingData
from uml_core.errors import InputError
from uml_core.models.closed_form.prior_model import unit_rows


@dataclass(frozen=True)
class Summing:
    """What a head asks of a corpus: of one as wide as the target the scatter too, of the target some rows as well."""

    num_classes: int
    with_scatter: bool
    keeps_rows: bool
    is_unit: bool  # rows are brought to unit length; kept ones stay as they are
    num_rows: int  # of the corpus that are added up

    @classmethod
    def of_corpus(cls, data: TrainingData, corpus: str, *, is_unit: bool) -> Summing:
        """Of the target's rows as they are or at unit length, of another corpus's at unit length."""
        is_target, rows = corpus == data.target, data.train[corpus]
        has_width = rows.dim == data.train[data.target].dim
        return cls(len(data.classes), has_width, is_target, is_unit or not is_target, rows.total)

    def places(self, lots: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Of some rows (N,) by their lots; -1 for those that are not kept."""
        return places_of(lots, self.num_rows) if self.keeps_rows else np.full(len(lots), -1)

    def add_up(self, blocks: Iterable[Block]) -> RowStatistics:
        """The statistics of all blocks, of which there is one at least."""
        return added_up(map(self._prepared, blocks), self.num_classes, with_scatter=self.with_scatter)

    def add_up_rows(self, rows: LabelledRows) -> RowStatistics:
        """The statistics of rows in memory or in a file on this machine."""
        return self.add_up(self._blocks(rows))

    def _blocks(self, rows: LabelledRows) -> Iterator[Block]:
        places_N, start = kept_places(rows) if self.keeps_rows else np.full(len(rows), -1), 0
        for block_ND, labels_N in rows.blocks(rows_at_once(rows.dim)):
            yield Block(block_ND, labels_N, places_N[start : start + len(labels_N)])
            start += len(labels_N)

    def _prepared(self, block: Block) -> Block:
        if not self.is_unit:
            return block
        return replace(block, rows=unit_rows(block.rows.astype(np.float64)), given=block.rows)


def check_solvable(experiment: Experiment, streamed: Collection[str]) -> None:
    """Raise InputError where a head takes all rows at once of a target that does not fit in memory."""
    if experiment.model.head == "logistic" and experiment.target in streamed:
        raise InputError(
            f"model.head is logistic, which takes all rows at once, and {experiment.target} does not fit into "
            f"feed.memory_gib {experiment.feed.memory_gib:g}; raise it, or set model.head to prior, discriminant or "
            "ridge, which add up any number of rows"
        )
