"""Rows of an embedded corpus with their class codes, and what takes their place: class means, or a control's noise.

Everything reads a block of rows at a time, because the embeddings may be a file that does not fit in memory.

Shape legend: N rows, D embedding width, C classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from uml_core.data.subsets import Rows
from uml_core.store.mapped_table import is_mapped, mapped_beside, release

BLOCK_ROWS = 16_384  # read at once


@dataclass(frozen=True)
class LabelledRows:
    """Rows of one table with their class codes: embeddings[rows] (N, D) belong to labels (N,)."""

    embeddings: npt.NDArray[np.float32]  # the whole table, shared
    rows: Rows
    labels: npt.NDArray[np.int64]
    corpus: str = ""  # of the table; "": the corpus it stands for
    lots: npt.NDArray[np.int64] | None = None  # of the whole table, shared: `lots_of` its ids, where it has any
    counts: npt.NDArray[np.int64] | None = None  # (N,) rows that each stands for, where it has no embedding

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def total(self) -> int:
        """How many rows of the corpus these are, also those that were only counted."""
        return len(self) if self.counts is None else int(self.counts.sum())

    @property
    def dim(self) -> int:
        return int(self.embeddings.shape[1])

    def gathered(self) -> npt.NDArray[np.float32]:
        """Copy the embeddings of these rows into one array (N, D)."""
        return self.embeddings[self.rows]

    def blocks(self, num_rows: int) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]:
        """Yield embeddings (N, D) and labels (N,) of so many rows at a time: a corpus in a file is never read whole."""
        for start in range(0, len(self.rows), num_rows):
            block = slice(start, start + num_rows)
            yield np.asarray(self.embeddings[self.rows[block]]), self.labels[block]
            release(self.embeddings)

    def raw_features(self) -> npt.NDArray[np.float32]:
        return self.gathered()


def class_means(rows: LabelledRows) -> LabelledRows:
    """One row for each class that has any: the mean of its embeddings (the paper's text shots "average")."""
    codes, position, counts = np.unique(rows.labels, return_inverse=True, return_counts=True)
    sums_CD = np.zeros((len(codes), rows.dim), dtype=np.float64)
    start = 0
    for block_ND, labels_N in rows.blocks(BLOCK_ROWS):
        np.add.at(sums_CD, position[start : start + len(labels_N)], block_ND)
        start += len(labels_N)
    means_CD = (sums_CD / counts[:, None]).astype(np.float32)
    return replace(rows, embeddings=means_CD, rows=np.arange(len(codes)), labels=codes.astype(np.int64))


def noise_like(rows: LabelledRows, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Gaussian noise with the mean and standard deviation of every column (N, D); in a file where its source is one."""
    column_mean_D, variance_D = column_moments(rows)
    mean_D, std_D = column_mean_D.astype(np.float32), np.sqrt(variance_D).astype(np.float32)

    def fill(noise_ND: npt.NDArray[np.float32]) -> None:
        for start in range(0, len(noise_ND), BLOCK_ROWS):
            block_ND = noise_ND[start : start + BLOCK_ROWS]
            block_ND[:] = rng.standard_normal(block_ND.shape, dtype=np.float32)
            block_ND *= std_D
            block_ND += mean_D

    shape = (len(rows), rows.dim)
    if is_mapped(rows.embeddings):
        drawn_from = str(rng.bit_generator.state["state"]).encode() + rows.rows.tobytes()
        return mapped_beside(rows.embeddings, f"noise-{hashlib.sha256(drawn_from).hexdigest()[:12]}", shape, fill)
    noise_ND = np.empty(shape, dtype=np.float32)
    fill(noise_ND)
    return noise_ND


def column_moments(rows: LabelledRows) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and variance of every column (D,), in float64."""
    mean_D, variance_D = np.zeros(rows.dim), np.zeros(rows.dim)
    for block_ND, _ in rows.blocks(BLOCK_ROWS):
        mean_D += block_ND.sum(axis=0, dtype=np.float64) / len(rows)
    for block_ND, _ in rows.blocks(BLOCK_ROWS):
        variance_D += ((block_ND - mean_D) ** 2).sum(axis=0) / len(rows)
    return mean_D, variance_D
