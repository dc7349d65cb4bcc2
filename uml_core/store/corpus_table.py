"""An embedded corpus as numpy arrays, and how Arrow columns become them.

Shape legend: N rows, D embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from uml_core.errors import InputError


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


def lots_of(ids: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """A number of each row (N,), from 0 to 2⁶³ − 1, that looks drawn by lot and comes from its id alone.

    It is a linear hash of the id's bytes, whose bits are then mixed as in MurmurHash3.
    """
    return np.concatenate([np.empty(0, dtype=np.int64), *(_lots_of_chunk(chunk) for chunk in ids.chunks if len(chunk))])


def _lots_of_chunk(ids: pa.Array) -> npt.NDArray[np.int64]:
    _, offsets, content = pa.concat_arrays([ids.cast(pa.large_string())]).buffers()
    ends_N = np.frombuffer(offsets, dtype=np.int64)[: len(ids) + 1]
    bytes_B = np.frombuffer(content or b"", dtype=np.uint8)[ends_N[0] : ends_N[-1]].astype(np.uint64)
    lengths_N = np.diff(ends_N)
    places_B = np.arange(len(bytes_B)) - np.repeat(ends_N[:-1] - ends_N[0], lengths_N)
    factors = np.random.default_rng(0).integers(2**64, size=int(lengths_N.max()), dtype=np.uint64)
    sums_B = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum((bytes_B + 1) * factors[places_B])])
    hashes_N = np.diff(sums_B[ends_N - ends_N[0]])
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        hashes_N = (hashes_N ^ (hashes_N >> 33)) * np.uint64(factor)
    lots_N: npt.NDArray[np.int64] = (hashes_N >> 1).astype(np.int64)
    return lots_N


def with_counted(table: CorpusTable, counts: Mapping[str, Mapping[str, int]]) -> CorpusTable:
    """A table, and behind its rows one row for each split and class of rows that were counted and not read.

    Such a row has no embedding: its number is past those of the table.

    Args:
        table: what was read.
        counts: split -> label ("" for none) -> rows, as a store's manifest has them.
    """
    added = [(split, label, count) for split, classes in counts.items() for label, count in classes.items()]
    labels = _coded(table.label_names, table.label_codes, [label or None for _, label, _ in added])
    splits = _coded(table.split_names, table.split_codes, [split for split, _, _ in added])
    counted = np.array([count for _, _, count in added], dtype=np.int64)
    own = np.ones(len(table.label_codes), dtype=np.int64)
    return CorpusTable(table.embeddings, *labels, *splits, counts=np.concatenate([own, counted]))


def _coded(
    names: Sequence[str], codes: npt.NDArray[np.int64], added: Sequence[str | None]
) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Codes of rows and of some more, into the sorted names of both."""
    every = tuple(sorted({*names, *(name for name in added if name is not None)}))
    code: dict[str | None, int] = {None: -1, **{name: number for number, name in enumerate(every)}}
    own = np.array([code[name] for name in names] + [-1], dtype=np.int64)[codes]
    return np.concatenate([own, np.array([code[name] for name in added], dtype=np.int64)]), every
