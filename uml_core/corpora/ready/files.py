"""Files of ready embeddings and token sequences as streams of rows: Parquet, .npy arrays, and time series in .csv.

In: a path or URI. Out: `Ready` rows, one after another, so that memory does not grow with the file.

* Parquet: column `embedding`, a list of numbers a row; or column `tokens`, a list of vectors a row, where a list of
  numbers is a sequence of one feature, and a list of whole numbers a sequence of discrete tokens.
* NAME.npy: embeddings (N, D); or tokens (N, T, D), or (N, T) of numbers or of whole numbers (discrete), where shorter
  rows end in NaN, discrete ones in -1. Label, split and id lie beside it in NAME.jsonl, NAME.csv or NAME.parquet (a
  record a row, in the same order) or NAME.json (a list of such records, or {column: list}).
* .csv, of tokens alone: a line a moment: `id`, every other column a feature, but for `time`, which orders the lines of
  an id, and `label` and `split`, which are the same on all of them.

Shape legend: N rows, T tokens of a row, D width of an embedding or token.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from uml_core.config import hash_of
from uml_core.corpora.readers.base import CorpusSource
from uml_core.corpora.readers.table_files import NAME_COLUMNS, Record, open_table, records_of
from uml_core.errors import InputError, listing
from uml_core.files.paths import (
    STORAGE_ERRORS,
    base_name,
    kind_of,
    one_line,
    open_bytes,
    open_parquet,
    read_json,
    stamp_of,
)
from uml_core.files.patterns import files_of

SUFFIXES = {"embeddings": (".parquet", ".npy"), "tokens": (".parquet", ".npy", ".csv")}
METADATA_SUFFIXES = (".jsonl", ".csv", ".parquet", ".json")
NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
ROWS_AT_ONCE = 1024  # of a Parquet file
CELLS = {"embedding": "a list of numbers", "tokens": "a list of vectors or of numbers"}
SHAPES = {"embedding": "(rows, width) of numbers", "tokens": "(rows, tokens, width) of numbers, or (rows, tokens)"}

Values = npt.NDArray[np.float32]  # (D,) or (T, D); of size 0 where there are none
Ready = tuple[Record, Values, bool]  # a file's row: its record, its embedding or tokens, and whether those are discrete


def column_of(source: CorpusSource) -> str:
    """What a corpus of ready data holds, by the name of its Parquet column: embedding or tokens."""
    return "embedding" if source.corpus.format == "embeddings" else "tokens"


def ready_files(source: CorpusSource) -> list[str]:
    """The files of a corpus; a table beside an array of the same name holds its metadata, and is left out."""
    if source.corpus.format == "multibench":
        source.kind()  # refuses a path that does not exist
        return [source.location]
    files = files_of(source.location, SUFFIXES[source.corpus.format], source.setting)
    arrays = {file.rpartition(".")[0] for file in files if _ending(file) == "npy"}
    return [file for file in files if _ending(file) == "npy" or file.rpartition(".")[0] not in arrays]


def content_of(source: CorpusSource) -> dict[str, object]:
    """What names the store folder of ready data: the files' sizes and times stand for their content."""
    found = ((file, _metadata_file(file, source.setting)) for file in ready_files(source))
    stamps = [(base_name(each), stamp_of(each)) for pair in found for each in pair if each is not None]
    return {"name": base_name(source.location), "content": hash_of([*stamps, source.corpus.split])}


def read_ready(source: CorpusSource, location: str) -> Iterator[Ready]:
    """Yield a file's rows.

    Raises:
        InputError: the file is not of its ending, holds nothing of the kind, or its metadata has another number of
            rows.
    """
    ending, named, column = _ending(location), f"{source.setting} {location}", column_of(source)
    try:
        yield from {"csv": _csv, "npy": _npy, "parquet": _parquet}[ending](named, location, column)
    except InputError:
        raise
    except STORAGE_ERRORS as error:
        raise InputError(f"{named} is not readable as {ending}: {one_line(error)}") from None


def _ending(location: str) -> str:
    return base_name(location).lower().rpartition(".")[2]


def _parquet(named: str, location: str, column: str) -> Iterator[Ready]:
    file = open_parquet(location)
    schema = file.schema_arrow
    if column not in schema.names:
        raise InputError(
            f"{named} has columns {listing(schema.names)}; it needs a column {column}, {CELLS[column]} a row "
            "(and label, split, id where there are any)"
        )
    inner = getattr(schema.field(column).type, "value_type", pa.null())
    number = getattr(inner, "value_type", inner) if column == "tokens" else inner
    if not (pa.types.is_floating(number) or pa.types.is_integer(number)):
        raise InputError(f"{named}: column {column} is not {CELLS[column]}")
    is_discrete = column == "tokens" and number is inner and pa.types.is_integer(number)
    columns = [column, *(name for name in NAME_COLUMNS if name in schema.names)]
    for batch in file.iter_batches(ROWS_AT_ONCE, columns=columns, use_threads=False):
        cells = batch.column(column)
        values = _vectors(cells) if number is inner else [_matrix(cell.values) for cell in cells]
        for record, value in zip(records_of(batch.drop_columns([column])), values, strict=True):
            yield record, value[:, None] if column == "tokens" and number is inner else value, is_discrete


def _vectors(cells: pa.Array) -> list[Values]:
    """Lists of numbers as (D,) each: empty where a list is null, NaN where a number is."""
    lengths = pc.fill_null(pc.list_value_length(cells), 0).to_numpy(zero_copy_only=False)
    return np.split(_float32(cells.flatten().to_numpy(zero_copy_only=False)), np.cumsum(lengths)[:-1])


def _matrix(vectors: pa.Array | None) -> Values:
    """Vectors as (T, D); empty where there are none, or where their widths differ."""
    widths = [] if vectors is None else pc.list_value_length(vectors).unique().to_pylist()
    if vectors is None or len(widths) != 1 or not widths[0]:
        return np.empty((0, 0), dtype=np.float32)
    return _float32(vectors.flatten().to_numpy(zero_copy_only=False)).reshape(len(vectors), -1)


def _npy(named: str, location: str, column: str) -> Iterator[Ready]:
    """Yield rows of an array, read as a stream: an array of any size, also from a URI, takes a row's memory."""
    with open_bytes(location) as file:
        shape, dtype = _npy_header(named, file, column)
        num_rows, row_bytes = shape[0], int(np.prod(shape[1:])) * dtype.itemsize
        records = _metadata(named, location, num_rows)
        is_discrete = column == "tokens" and len(shape) == 2 and dtype.kind in "iu"
        for position in range(num_rows):
            content, record = file.read(row_bytes), next(records, None)
            if len(content) < row_bytes:
                raise InputError(f"{named} ends within its {num_rows} rows; it was cut short")
            if record is None:
                raise InputError(f"{named} has {num_rows} rows, its metadata {position}; one record a row")
            values = _float32(np.frombuffer(content, dtype))
            if column == "tokens":
                values = _without_padding(values.reshape(shape[1], -1), -1 if is_discrete else np.nan)
            yield record, values, is_discrete
        if num_rows and next(records, None) is not None:
            raise InputError(f"{named} has {num_rows} rows, its metadata more; one record a row")


def _npy_header(named: str, file: IO[bytes], column: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(file)
        shape, is_fortran, dtype = NPY_HEADERS[version](file)
    except KeyError:
        raise InputError(f"{named} is of a version of .npy that holds no plain numbers") from None
    dims = (2,) if column == "embedding" else (2, 3)
    if len(shape) not in dims or dtype.kind not in "fiu" or 0 in shape[1:]:
        raise InputError(f"{named} holds an array of shape {shape} and type {dtype}; expected {SHAPES[column]}")
    if is_fortran:
        raise InputError(f"{named} is stored column by column; save it again with numpy.ascontiguousarray")
    return shape, dtype


def _without_padding(tokens_TD: Values, padding: float) -> Values:
    is_padding_TD = np.isnan(tokens_TD) if np.isnan(padding) else tokens_TD == padding
    used = np.flatnonzero(~is_padding_TD.all(axis=1))
    return tokens_TD[: used[-1] + 1] if len(used) else tokens_TD[:0]


def _metadata_file(location: str, setting: str) -> str | None:
    """The file that names the rows of an array; None for another file, or where there is none."""
    if _ending(location) != "npy":
        return None
    base, _, query = location.partition("?")
    candidates = [base[: -len(".npy")] + suffix + (f"?{query}" if query else "") for suffix in METADATA_SUFFIXES]
    return next((file for file in candidates if kind_of(file, setting) == "file"), None)


def _metadata(named: str, location: str, num_rows: int) -> Iterator[Record]:
    file = _metadata_file(location, named)
    if file is None:
        return itertools.repeat(Record({}), num_rows)
    return _json_metadata(named, file) if _ending(file) == "json" else open_table(named, file).records


def _json_metadata(named: str, file: str) -> Iterator[Record]:
    tree = read_json(file, f"{named}: {base_name(file)}")
    if isinstance(tree, dict):
        columns = {name: tree[name] for name in NAME_COLUMNS if name in tree}
        are_lists = all(isinstance(column, list) for column in columns.values())
        if are_lists and len({len(column) for column in columns.values()}) == 1:
            tree = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if not isinstance(tree, list) or not all(isinstance(record, dict) for record in tree):
        raise InputError(
            f"{named}: {base_name(file)} holds neither a list of objects nor {{column: list}} with columns of one "
            f"length among {listing(NAME_COLUMNS)}"
        )
    return map(Record, tree)


def _csv(named: str, location: str, column: str) -> Iterator[Ready]:
    """Yield the series of a table with a line a moment; a table of this kind is read at once."""
    import pandas as pd  # half a second, which the steps after embed need not pay

    with open_bytes(location) as file:
        table = pd.read_csv(file, dtype={"id": str, "label": str, "split": str})
    features = [name for name in table.columns if name not in ("time", *NAME_COLUMNS)]
    if "id" not in table.columns or not features:
        raise InputError(
            f"{named} has columns {listing(map(str, table.columns))}; a time series needs id, and one column a feature "
            "(time, label and split where there are any)"
        )
    words = [name for name in features if not pd.api.types.is_numeric_dtype(table[name])]
    if words:
        raise InputError(f"{named}: columns {listing(words)} hold words; features are numbers")
    for series_id, lines in table.groupby("id", sort=False):
        lines = lines.sort_values("time", kind="stable") if "time" in lines else lines
        names = {name: lines[name].dropna().unique() for name in ("label", "split") if name in lines}
        fault = next((f"{name} changes within the series" for name, found in names.items() if len(found) > 1), None)
        record = Record({"id": series_id, **{name: found[0] for name, found in names.items() if len(found)}}, fault)
        yield record, _float32(lines[features].to_numpy()), False


def _float32(values: npt.NDArray[Any]) -> Values:
    with np.errstate(over="ignore", invalid="ignore"):  # beyond float32 becomes infinity, which is refused by row
        return values.astype(np.float32, copy=False)
