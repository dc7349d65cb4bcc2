"""What a linear head in closed form asks of its rows, however many there are: sums, and a few rows as they are.

In: labelled rows, a block at a time. Out: `RowStatistics`, which add up, over blocks, parts of a store and machines, to
the same numbers in whatever order, up to rounding in float64. Their memory is that of the classes and of the width:
C × D, D × D where the scatter is asked for, and about `KEPT_ROWS` × D.

    statistics = added_up(blocks, num_classes, with_scatter=True)

Shape legend: N rows, D embedding width, C classes, K kept rows.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from uml_core.data.labelled_rows import LabelledRows

Array = npt.NDArray[np.float64]
KEPT_ROWS = 10_000  # of more rows about so many, drawn by lot, can be left out one at a time
NUM_LOTS = 2**63
BLOCK_NUMBERS = 2**23  # of embeddings that are added up at once: 64 MiB in float64


@dataclass(frozen=True)
class Block:
    """Some rows of a corpus, as they are added up."""

    rows: npt.NDArray[Any]  # (N, D)
    labels: npt.NDArray[np.int64]  # (N,) class codes
    places: npt.NDArray[np.int64]  # (N,) by which kept rows are ordered, -1 for those that are not kept
    given: npt.NDArray[Any] | None = None  # (N, D) as they are kept, where that is another thing


@dataclass(frozen=True)
class RowStatistics:
    """Sums over rows of a corpus, in float64."""

    counts: Array  # (C,) rows of each class
    sums: Array  # (C, D) of the rows of each class
    scatter: Array | None  # (D, D): Σ (x − mean)(x − mean)ᵀ, whose sums lose no digits where the mean is far from 0
    kept: npt.NDArray[Any]  # (K, D)
    kept_labels: npt.NDArray[np.int64]  # (K,)
    places: npt.NDArray[np.int64]  # (K,) by which the kept rows are ordered

    @property
    def total(self) -> float:
        """The number of rows."""
        return float(self.counts.sum())

    @property
    def mean(self) -> Array:
        """Of all rows (D,)."""
        mean_D: Array = self.sums.sum(axis=0) / max(self.total, 1.0)
        return mean_D

    def plus(self, other: RowStatistics) -> RowStatistics:
        """Of the rows of both."""
        scatter = None
        if self.scatter is not None and other.scatter is not None:
            apart_D = np.sqrt(self.total * other.total / max(self.total + other.total, 1.0)) * (other.mean - self.mean)
            scatter = self.scatter + other.scatter + np.outer(apart_D, apart_D)
        places = np.concatenate([self.places, other.places])
        order = np.argsort(places)
        return RowStatistics(
            self.counts + other.counts,
            self.sums + other.sums,
            scatter,
            np.concatenate([self.kept, other.kept])[order],
            np.concatenate([self.kept_labels, other.kept_labels])[order],
            places[order],
        )

    def of_seen_classes(self) -> RowStatistics:
        """The same rows, their classes numbered among those that have any."""
        seen = np.flatnonzero(self.counts)
        labels_K = np.searchsorted(seen, self.kept_labels)
        return RowStatistics(self.counts[seen], self.sums[seen], self.scatter, self.kept, labels_K, self.places)

    def to_bytes(self) -> bytes:
        """The content of a file that `from_bytes` reads."""
        stream = io.BytesIO()
        np.savez(stream, **{name: value for name, value in vars(self).items() if value is not None})
        return stream.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> RowStatistics:
        """Read what `to_bytes` wrote."""
        with np.load(io.BytesIO(content)) as arrays:
            return cls(**{"scatter": None, **arrays})


def places_of(lots: npt.NDArray[np.int64], num_rows: int) -> npt.NDArray[np.int64]:
    """The places of rows (N,) of so many in all: all are kept where those are few, else `KEPT_ROWS` to be expected."""
    last = NUM_LOTS - 1 if num_rows <= KEPT_ROWS else int(NUM_LOTS * (KEPT_ROWS / num_rows))
    return np.where(lots <= last, lots, -1)


def kept_places(rows: LabelledRows) -> npt.NDArray[np.int64]:
    """The places of some rows (N,): by lots of their ids, or of their numbers where they have no ids."""
    if rows.lots is not None:
        return places_of(rows.lots[rows.rows], len(rows))
    lots = np.random.default_rng(0).integers(NUM_LOTS, size=len(rows))
    return np.where(places_of(lots, len(rows)) >= 0, np.arange(len(rows)), -1)


def rows_at_once(dim: int) -> int:
    """How many rows of a width are added up at once."""
    return max(1, BLOCK_NUMBERS // dim)


def added_up(blocks: Iterable[Block], num_classes: int, *, with_scatter: bool) -> RowStatistics:
    """The statistics of all blocks, of which there is one at least; without a scatter only the classes' sums."""
    return functools.reduce(RowStatistics.plus, (_of_block(block, num_classes, with_scatter) for block in blocks))


def _of_block(block: Block, num_classes: int, with_scatter: bool) -> RowStatistics:
    rows_ND = np.asarray(block.rows, dtype=np.float64)
    num_rows = len(rows_ND)
    indicators_CN = csr_array((np.ones(num_rows), (block.labels, np.arange(num_rows))), (num_classes, num_rows))
    counts_C, sums_CD = np.bincount(block.labels, minlength=num_classes).astype(np.float64), indicators_CN @ rows_ND
    scatter = None
    if with_scatter:
        centred_ND = rows_ND - sums_CD.sum(axis=0) / max(num_rows, 1)
        scatter = centred_ND.T @ centred_ND
    order = np.argsort(block.places)
    kept, given_ND = order[block.places[order] >= 0], block.rows if block.given is None else block.given
    return RowStatistics(counts_C, sums_CD, scatter, given_ND[kept], block.labels[kept], block.places[kept])
