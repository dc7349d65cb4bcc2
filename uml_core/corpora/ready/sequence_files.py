"""Files of token sequences as streams of rows: Parquet lists, .npy arrays, and time series in .csv.

In: a path or URI. Out: a record a row (id, label, split) with its tokens, some rows at a time.

* Parquet: column `tokens`, a list of vectors a row; a list of numbers is a sequence of one feature, and a list of whole
  numbers a sequence of discrete tokens.
* NAME.npy: (N, T, D), or (N, T) of numbers or of whole numbers (discrete). Shorter rows end in NaN, discrete
  ones in -1. Names lie beside it as those of ready embeddings do (`ready_files`).
* .csv: a line a moment: `id`, every other column a feature, but for `time`, which orders the lines of an id, and
  `label` and `split`, which are the same on all of them.

Shape legend: N rows, T tokens of a row, D width of a token.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from uml_core.corpora.readers.table_files import NAME_COLUMNS, Record, records_of
from uml_core.corpora.ready.array_files import float32, metadata_records, npy_header
from uml_core.errors import InputError, listing
from uml_core.files.paths import STORAGE_ERRORS, base_name, one_line, open_bytes, open_parquet

SUFFIXES = (".parquet", ".npy", ".csv")
SERIES_COLUMNS = ("time", *NAME_COLUMNS)


@dataclass(frozen=True)
class TokenRecord:
    """One row: its record, its tokens (T, D) float32 (None: none), and whether they are discrete."""

    record: Record
    tokens: npt.NDArray[np.float32] | None
    is_discrete: bool = False


def token_records(setting: str, location: str, rows_at_once: int) -> Iterator[list[TokenRecord]]:
    """Yield a file's rows, `rows_at_once` at a time.

    Raises:
        InputError: the file is not of its ending, or holds no token sequences.
    """
    name = base_name(location).lower()
    reader = _npy if name.endswith(".npy") else _csv if name.endswith(".csv") else _parquet
    try:
        rows = reader(f"{setting} {location}", location, rows_at_once)
        while batch := list(itertools.islice(rows, rows_at_once)):
            yield batch
    except InputError:
        raise
    except STORAGE_ERRORS as error:
        raise InputError(
            f"{setting} {location} is not readable as {name.rpartition('.')[2]}: {one_line(error)}"
        ) from None


def _parquet(named: str, location: str, rows_at_once: int) -> Iterator[TokenRecord]:
    file = open_parquet(location)
    schema = file.schema_arrow
    if "tokens" not in schema.names:
        raise InputError(
            f"{named} has columns {listing(schema.names)}; format tokens needs a column tokens, a list of vectors or "
            "of whole numbers a row (and label, split, id where there are any)"
        )
    inner = getattr(schema.field("tokens").type, "value_type", pa.null())
    number = getattr(inner, "value_type", inner)
    if not (pa.types.is_floating(number) or pa.types.is_integer(number)):
        raise InputError(f"{named}: column tokens is not a list of vectors or numbers")
    is_discrete = number is inner and pa.types.is_integer(number)
    columns = ["tokens", *(name for name in NAME_COLUMNS if name in schema.names)]
    for batch in file.iter_batches(rows_at_once, columns=columns, use_threads=False):
        records = records_of(batch.drop_columns(["tokens"]))
        for record, value in zip(records, batch.column("tokens"), strict=True):
            yield TokenRecord(record, _tokens_of(value, is_flat=number is inner), is_discrete)


def _tokens_of(value: Any, *, is_flat: bool) -> npt.NDArray[np.float32] | None:
    """Return a cell as (T, D); None where it is null, holds a null, or has vectors of unlike widths."""
    if not value.is_valid or not len(value.values):
        return None
    inner = value.values
    if is_flat:
        return float32(inner.to_numpy(zero_copy_only=False))[:, None]
    if inner.null_count:
        return None
    flat = float32(inner.flatten().to_numpy(zero_copy_only=False))
    width, left = divmod(len(flat), len(inner))
    widths = {len(vector.values) for vector in inner} if not pa.types.is_fixed_size_list(inner.type) else {width}
    return flat.reshape(len(inner), width) if not left and widths == {width} and width else None


def _npy(named: str, location: str, rows_at_once: int) -> Iterator[TokenRecord]:
    """Yield rows of an array, read as a stream."""
    with open_bytes(location) as file:
        shape, dtype = npy_header(
            named, file, dims=(2, 3), expected="(rows, tokens, width) of numbers, or (rows, tokens)"
        )
        records = metadata_records(named, location, shape[0])
        is_discrete = len(shape) == 2 and dtype.kind in "iu"
        row_bytes = int(np.prod(shape[1:])) * dtype.itemsize
        for position in range(shape[0]):
            content = file.read(row_bytes)
            if len(content) < row_bytes:
                raise InputError(f"{named} ends within its {shape[0]} rows; it was cut short")
            record = next(records, None)
            if record is None:
                raise InputError(f"{named} has {shape[0]} rows, its metadata {position}; one record a row")
            values = np.frombuffer(content, dtype).reshape(shape[1], -1)
            padding = values == -1 if is_discrete else np.isnan(values) if dtype.kind == "f" else np.zeros_like(values)
            used = np.flatnonzero(~padding.all(axis=1))
            tokens = float32(values[: used[-1] + 1]) if len(used) else None
            yield TokenRecord(record, tokens, is_discrete)
        if next(records, None) is not None and shape[0]:
            raise InputError(f"{named} has {shape[0]} rows, its metadata more; one record a row")


def _csv(named: str, location: str, rows_at_once: int) -> Iterator[TokenRecord]:
    """Yield the series of a table with a line a moment; a table of this kind is read at once."""
    import pandas as pd  # half a second, which the steps after embed need not pay

    with open_bytes(location) as file:
        table = pd.read_csv(file, dtype={"id": str, "label": str, "split": str})
    features = [name for name in table.columns if name not in SERIES_COLUMNS]
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
        yield TokenRecord(record, float32(lines[features].to_numpy()))
