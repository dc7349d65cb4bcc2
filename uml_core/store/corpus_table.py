"""An embedded corpus as numpy arrays, and how Arrow columns become them.

Shape legend: N rows, D embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from uml_core.errors import InputError
from uml_core.store.lots import lots_of


@dataclass(frozen=True)
class CorpusTable:
    """An embedded corpus as arrays: embeddings (N, D) float32, label and split codes (N,) into their name tuples."""

    embeddings: npt.NDArray[np.float32]
    label_codes: npt.NDArray[np.int64]  # -1 where there is no label
    label_names: tuple[str, ...]
    split_codes: npt.NDArray[np.int64]
    split_names: tuple[str, ...]
    lots: npt.NDArray[np.int64] | None = None  # (N,) of `lots_of`, where the rows have ids
    counts: npt.NDArray[np.int64] | None = None  # (N,) rows that each stands for (`with_counted`), where not itself


def unread(num_rows: int, dim: int) -> npt.NDArray[np.float32]:
    """What stands for embeddings (N, D) that were not read: NaN, in the memory of one number."""
    return np.broadcast_to(np.float32(np.nan), (num_rows, dim))


def is_unread(embeddings: npt.NDArray[np.float32]) -> bool:
    return embeddings.strides == (0, 0)


def order_by_id(table: pa.Table) -> npt.NDArray[np.int64]:
    """The row numbers (N,) of a table with a column `id` in the order of the ids, by code point."""
    order: npt.NDArray[np.int64] = pc.sort_indices(table["id"]).to_numpy().astype(np.int64)
    return order


def finite_matrix(
    column: pa.ChunkedArray, dim: int, directory: str, *, order: npt.NDArray[np.int64] | None = None
) -> npt.NDArray[np.float32]:
    """A column of vectors, in some order of its rows, as (N, D) float32.

    Raises:
        InputError: it holds NaN or infinity.
    """
    matrix = np.empty((len(column), dim), dtype=np.float32)
    places: npt.NDArray[np.int64] = np.arange(len(column))
    if order is not None:
        places[order] = np.arange(len(column))
    start = 0
    for chunk in column.chunks:
        matrix[places[start : start + len(chunk)]] = chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
        start += len(chunk)
    if not np.isfinite(matrix).all():
        bad = int((~np.isfinite(matrix).all(axis=1)).sum())
        raise InputError(f"store {directory} holds {bad} embeddings with NaN or infinity; delete it and embed again")
    return matrix


def codes_of(column: pa.ChunkedArray) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """Sorted names and each row's index into them (-1 for null)."""
    names = sorted(name for name in column.unique().to_pylist() if name is not None)
    codes = pc.fill_null(pc.index_in(column, value_set=pa.array(names, pa.string())), -1)
    return tuple(names), codes.to_numpy().astype(np.int64)


def labelled(table: pa.Table, order: npt.NDArray[np.int64], embeddings_ND: npt.NDArray[np.float32]) -> CorpusTable:
    """Embeddings in some order of a table's rows, with its labels and splits in that order."""
    label_names, label_codes = codes_of(table["label"])
    split_names, split_codes = codes_of(table["split"])
    lots_N = lots_of(table["id"])[order]
    return CorpusTable(embeddings_ND, label_codes[order], label_names, split_codes[order], split_names, lots_N)
