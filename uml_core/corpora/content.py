"""The bytes of a raw row: a whole file, a range of bytes in a tar shard, or one cell of a Parquet file.

In: a path or URI, and which member of it. Out: its bytes, or a RowError with a reason for the table of rejected rows.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from uml_core.errors import RowError
from uml_core.files.paths import STORAGE_ERRORS, one_line, open_bytes, open_parquet

Raw = bytes | str  # file content for images and audio, a sentence (or the bytes of a text file) for text
MAX_BYTES = 2**30  # of a file or member: a larger one is no picture, sound or sentence, and would fill a node's memory
CELLS_AT_ONCE = 32  # cells of a Parquet column decoded together


class ByteRange(NamedTuple):
    """A member of an uncompressed tar shard: `size` bytes from `offset`."""

    offset: int
    size: int


class Cell(NamedTuple):
    """A cell of a Parquet file: `row` counts within the row group."""

    row_group: int
    row: int
    column: str


Member = ByteRange | Cell


def read_content(path: str, member: Member | None, stamp: str) -> bytes:
    """The bytes of a file or of its member; the stamp tells a Parquet file from a newer one in its place.

    Raises:
        RowError: missing, unreadable, cut short, empty, or larger than MAX_BYTES.
    """
    try:
        if isinstance(member, Cell):
            return _cell_bytes(_cells.value(path, member, stamp), member)
        with open_bytes(path) as file:
            if member is not None:
                file.seek(member.offset)
            content = file.read(min(MAX_BYTES + 1, sys.maxsize if member is None else member.size))
    except STORAGE_ERRORS as error:
        if isinstance(error, RowError):
            raise
        raise RowError(f"cannot be opened: {one_line(error)}") from None
    if len(content) > MAX_BYTES:
        raise RowError(f"more than {MAX_BYTES} bytes, which is all that is read of one row")
    if member is not None and len(content) < member.size:
        raise RowError(f"the file ends after {len(content)} of its {member.size} bytes")
    if not content:
        raise RowError("empty file (0 bytes)")
    return content


def _cell_bytes(value: object, cell: Cell) -> bytes:
    """A cell's bytes: binary, or the struct {bytes, path} that image columns of Hugging Face data sets hold."""
    if isinstance(value, dict):
        value = value.get("bytes")
    if not isinstance(value, bytes) or not value:
        raise RowError(f"column {cell.column} holds no bytes")
    return value


class _CellCursor(threading.local):
    """Reads the cells of one Parquet column in their order, decoding a few at a time; going back starts anew.

    Each thread has its own: a worker reads its rows in their order, so each cell is decoded once.
    """

    def __init__(self) -> None:
        self._column: tuple[str, str, int, str] | None = None
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._batch: pa.Array = pa.nulls(0)
        self._start = 0

    def value(self, path: str, cell: Cell, stamp: str) -> Any:
        column = (path, stamp, cell.row_group, cell.column)
        if column != self._column or cell.row < self._start:
            self._open(path, cell)
        self._column = None  # until the cell is there: after an error the column is opened anew
        while cell.row >= self._start + len(self._batch):
            self._start += len(self._batch)
            batch = next(self._batches, None)
            if batch is None:
                raise RowError(f"row group {cell.row_group} has no row {cell.row}: the file has changed")
            self._batch = batch.column(0)
        self._column = column
        return self._batch[cell.row - self._start].as_py()

    def _open(self, path: str, cell: Cell) -> None:
        self._column, self._start, self._batch = None, 0, pa.nulls(0)
        self._batches = open_parquet(path).iter_batches(
            batch_size=CELLS_AT_ONCE, row_groups=[cell.row_group], columns=[cell.column], use_threads=False
        )


_cells = _CellCursor()
