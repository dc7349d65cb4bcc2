"""Files of ready embeddings as streams of chunks: Parquet, or .npy with its metadata beside it.

In: a path or URI. Out: `Chunk`s of some thousand rows, so that memory does not grow with the file. An array NAME.npy
(N, D) finds label, split and id in NAME.jsonl, NAME.csv or NAME.parquet (a record a row, in the same order) or
NAME.json (a list of such records, or {column: list}).

Shape legend: N rows, D embedding width.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from uml_core.config import hash_of
from uml_core.corpora.readers.base import CorpusSource
from uml_core.corpora.readers.table_files import NAME_COLUMNS, Record, open_table, records_of
from uml_core.errors import InputError, listing
from uml_core.files.paths import STORAGE_ERRORS, base_name, kind_of, one_line, open_bytes, open_parquet, stamp_of
from uml_core.files.patterns import files_of

METADATA_SUFFIXES = (".jsonl", ".csv", ".parquet", ".json")
NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True)
class Chunk:
    """Some rows of a file: their records, the width of each embedding (0: none), and all values one after another."""

    records: Sequence[Record]
    widths: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]


def chunks_of(setting: str, location: str, chunk_rows: int) -> Iterator[Chunk]:
    """Yield a file's rows in chunks.

    Raises:
        InputError: the file is not Parquet with a column embedding, not an array (N, D) of numbers, or its metadata
            has another number of rows.
    """
    try:
        yield from (_npy_chunks if _is_npy(location) else _parquet_chunks)(
            f"{setting} {location}", location, chunk_rows
        )
    except InputError:
        raise
    except STORAGE_ERRORS as error:
        kind = "an array" if _is_npy(location) else "Parquet"
        raise InputError(f"{setting} {location} is not readable as {kind}: {one_line(error)}") from None


def ready_files(source: CorpusSource, suffixes: Sequence[str]) -> list[str]:
    """Return the files of a corpus; a table beside an array of the same name holds its metadata, and is left out."""
    files = files_of(source.location, suffixes, source.setting)
    arrays = {file.rpartition(".")[0] for file in files if _is_npy(file)}
    return [file for file in files if _is_npy(file) or file.rpartition(".")[0] not in arrays]


def content_of(source: CorpusSource, files: Sequence[str]) -> dict[str, object]:
    """Return what names the store folder of ready data: the files' sizes and times stand for their content."""
    found = ((file, metadata_of(file, source.setting)) for file in files)
    stamps = [(base_name(each), stamp_of(each)) for pair in found for each in pair if each is not None]
    return {"name": base_name(source.location), "content": hash_of([*stamps, source.corpus.split])}


def metadata_of(location: str, setting: str) -> str | None:
    """Return the file that names the rows of an array; None for Parquet, or where there is none."""
    if not _is_npy(location):
        return None
    base, _, query = location.partition("?")
    candidates = [base[: -len(".npy")] + suffix + (f"?{query}" if query else "") for suffix in METADATA_SUFFIXES]
    return next((file for file in candidates if kind_of(file, setting) == "file"), None)


def _is_npy(location: str) -> bool:
    return base_name(location).lower().endswith(".npy")


def _parquet_chunks(named: str, location: str, chunk_rows: int) -> Iterator[Chunk]:
    file = open_parquet(location)
    schema = file.schema_arrow
    if "embedding" not in schema.names:
        raise InputError(
            f"{named} has columns {listing(schema.names)}; "
            "format embeddings needs a column embedding (and label, split, id where there are any)"
        )
    value_type = getattr(schema.field("embedding").type, "value_type", pa.null())
    if not (pa.types.is_floating(value_type) or pa.types.is_integer(value_type)):
        raise InputError(f"{named}: column embedding is not a list of numbers")
    columns = ["embedding", *(name for name in NAME_COLUMNS if name in schema.names)]
    for batch in file.iter_batches(chunk_rows, columns=columns, use_threads=False):
        embeddings = batch.column("embedding")
        widths = pc.fill_null(pc.list_value_length(embeddings), 0).to_numpy(zero_copy_only=False)
        values = embeddings.flatten().to_numpy(zero_copy_only=False)  # a null among numbers becomes NaN
        yield Chunk(list(records_of(batch.drop_columns(["embedding"]))), widths.astype(np.int64), float32(values))


def _npy_chunks(named: str, location: str, chunk_rows: int) -> Iterator[Chunk]:
    """Yield rows of an array, read as a stream: an array of any size, also from a URI, takes a chunk's memory."""
    with open_bytes(location) as file:
        (num_rows, dim), dtype = npy_header(named, file, dims=(2,), expected="(rows, width) of numbers")
        names = metadata_records(named, location, num_rows)
        for start in range(0, num_rows, chunk_rows):
            count = min(chunk_rows, num_rows - start)
            content = file.read(count * dim * dtype.itemsize)
            if len(content) < count * dim * dtype.itemsize:
                raise InputError(f"{named} ends within its {num_rows} rows; it was cut short")
            records = list(itertools.islice(names, count))
            if len(records) < count:
                raise InputError(f"{named} has {num_rows} rows, its metadata {start + len(records)}; one record a row")
            yield Chunk(records, np.full(count, dim), float32(np.frombuffer(content, dtype)))
        if num_rows and next(names, None) is not None:
            raise InputError(f"{named} has {num_rows} rows, its metadata more; one record a row")


def npy_header(
    named: str, file: IO[bytes], *, dims: tuple[int, ...], expected: str
) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and dtype of an array of numbers; `expected` says the shapes of so many dimensions in words."""
    try:
        version = np.lib.format.read_magic(file)
        shape, is_fortran, dtype = NPY_HEADERS[version](file)
    except KeyError:
        raise InputError(f"{named} is of a version of .npy that holds no plain numbers") from None
    if len(shape) not in dims or dtype.kind not in "fiu" or 0 in shape[1:]:
        raise InputError(f"{named} holds an array of shape {shape} and type {dtype}; expected {expected}")
    if is_fortran:
        raise InputError(f"{named} is stored column by column; save it again with numpy.ascontiguousarray")
    return tuple(shape), dtype


def metadata_records(named: str, location: str, num_rows: int) -> Iterator[Record]:
    """Yield the records beside an array; where there are none, empty ones."""
    file = metadata_of(location, named)
    if file is None:
        return iter([Record({})] * num_rows)
    return _json_metadata(named, file) if base_name(file).endswith(".json") else open_table(named, file).records


def _json_metadata(named: str, file: str) -> Iterator[Record]:
    """Yield the records of a list of objects, or of {column: list}; a file of this kind is read at once."""
    try:
        with open_bytes(file) as stream:
            tree = json.loads(stream.read().decode("utf-8-sig"))
    except (RecursionError, *STORAGE_ERRORS) as error:
        raise InputError(f"{named}: {base_name(file)} is not JSON: {one_line(error)}") from None
    if isinstance(tree, list) and all(isinstance(record, dict) for record in tree):
        return (Record(record) for record in tree)
    if isinstance(tree, dict) and all(isinstance(column, list) for column in tree.values()):
        return _by_row(named, file, {name: tree[name] for name in NAME_COLUMNS if name in tree})
    raise InputError(f"{named}: {base_name(file)} holds neither a list of objects nor {{column: list}}")


def _by_row(named: str, file: str, columns: Mapping[str, Sequence[Any]]) -> Iterator[Record]:
    if not columns or len({len(column) for column in columns.values()}) > 1:
        raise InputError(f"{named}: {base_name(file)} needs columns of one length among {listing(NAME_COLUMNS)}")
    return (Record(dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True))


def float32(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore"):  # beyond float32 becomes infinity, which is refused by row
        return values.astype(np.float32, copy=False)
