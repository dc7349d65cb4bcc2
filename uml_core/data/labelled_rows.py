"""Rows of an embedded corpus with their class codes, as training and evaluation select them.

Shape legend: N rows, D embedding width, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from uml_core.data.subsets import Rows
from uml_core.store.mapped_table import release

# What a row's values (T, D) become, given its place among the rows: T is 1 for embeddings.
RowFunction = Callable[[int, npt.NDArray[np.float32]], npt.NDArray[np.float32]]


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

    @property
    def is_discrete(self) -> bool:
        """Whether values are names of things rather than numbers: never, of embeddings."""
        return False

    def raw_features(self) -> npt.NDArray[np.float32]:
        """Return what needs no training (N, D): the embeddings."""
        return self.gathered()

    def statistics(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return the mean and standard deviation of every feature (D,), (D,)."""
        values = self.gathered()
        return values.mean(axis=0), values.std(axis=0)

    def taken(self, places: Rows) -> LabelledRows:
        """Return some of these rows, by their place among them."""
        return replace(self, rows=self.rows[places], labels=self.labels[places])

    def mapped(self, function: RowFunction) -> LabelledRows:
        """Return these rows with `function(place, values (1, D))` in place of each embedding."""
        values = [function(place, row_D[None]) for place, row_D in enumerate(self.gathered())]
        return replace(self, embeddings=np.concatenate(values), rows=np.arange(len(self)))
