"""Rows of an embedded corpus with their class codes, as training and evaluation select them.

Shape legend: N rows, D embedding width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from uml_core.data.subsets import Rows
from uml_core.store.mapped_table import release


@dataclass(frozen=True)
class LabelledRows:
    """Rows of one table with their class codes: embeddings[rows] (N, D) belong to labels (N,)."""

    embeddings: npt.NDArray[np.float32]  # the whole table, shared
    rows: Rows
    labels: npt.NDArray[np.int64]
    corpus: str = ""  # of the table; "": the corpus it stands for

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def dim(self) -> int:
        """Embedding width D."""
        return int(self.embeddings.shape[1])

    def gathered(self) -> npt.NDArray[np.float32]:
        """Return the embeddings of these rows as one array (N, D)."""
        return self.embeddings[self.rows]

    def blocks(self, num_rows: int) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]:
        """Yield embeddings (N, D) and labels (N,) of so many rows at a time: a corpus in a file is never read whole."""
        for start in range(0, len(self.rows), num_rows):
            block = slice(start, start + num_rows)
            yield np.asarray(self.embeddings[self.rows[block]]), self.labels[block]
            release(self.embeddings)

    def raw_features(self) -> npt.NDArray[np.float32]:
        """Return what needs no training (N, D): the embeddings."""
        return self.gathered()
