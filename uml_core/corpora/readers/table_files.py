"""Tables as streams of records: .jsonl line by line, .csv and .tsv row by row, .parquet batch by batch; also .gz.

In: a path or URI. Out: a `Table` with its columns and an iterator of `Record`. A line that cannot be read is a record
with a fault, and the lines after it are read. A .csv whose header has no comma may be separated by ; or tabs.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from uml_core.errors import InputError, listing, nearest
from uml_core.files.paths import STORAGE_ERRORS, base_name, one_line, open_bytes, open_parquet, stamps_of

TABLE_SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".csv.gz", ".tsv.gz")
NAME_COLUMNS = ("id", "label", "split")
OUR_COLUMNS = (*NAME_COLUMNS, "text", "path")
BYTE_COLUMNS = ("bytes", "content", "image", "audio")
MAX_FIELD = 2**24  # characters of a CSV field; a quote that is never closed must not take the file as one field
MAX_LINE = 2**26  # bytes of a line of .jsonl, unpacked
LARGE = 2**30  # bytes from which on each row group of a Parquet file may be listed by a task of its own
PEEKED = 1000  # lines of a .jsonl file that say which columns there are
BATCH_ROWS = 1024
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
TakesGroup = Callable[[int], bool]


@dataclass(frozen=True, slots=True)
class Record:
    """One line or row: its values, or why it cannot be read; `position` counts rows of a Parquet row group."""

    values: Mapping[str, Any]
    fault: str | None = None
    position: tuple[int, int] = (0, 0)  # row group, row


@dataclass(frozen=True)
class Table:
    """A table that is read as it is iterated."""

    columns: Sequence[str]
    records: Iterator[Record]
    byte_column: str | None = None  # a Parquet column with the content itself
    starts: Sequence[int] = ()  # of a Parquet file: how many rows lie before each row group
    label_names: Sequence[str] = ()  # names of integer labels, from the metadata of Hugging Face data sets


def table_ending(location: str) -> str:
    """A file's ending in small letters, such as .csv, or .csv.gz of a compressed one."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(base_name(location)).suffixes]
    return "".join(suffixes[-2:] if suffixes[-1:] == [".gz"] else suffixes[-1:])


def large_files(files: Sequence[str]) -> list[str]:
    """Those of some files that have LARGE bytes or more."""
    sizes = (stamp.partition("-")[0] for stamp in stamps_of(files))
    return [file for file, size in zip(files, sizes, strict=True) if size.isdigit() and int(size) >= LARGE]


def open_table(
    setting: str,
    location: str,
    columns: Mapping[str, str] | None = None,
    takes_group: TakesGroup = lambda group: True,
) -> Table:
    """Open a table by its ending.

    Args:
        setting: what messages name.
        location: path or URI.
        columns: our names of columns that the table names otherwise, and what it names them.
        takes_group: which row groups of a Parquet file are read.

    Raises:
        InputError: the ending is unknown, the file as a whole is not what its ending says, or lacks one of `columns`.
    """
    suffix, columns = table_ending(location), columns or {}
    opener = _OPENERS.get(suffix.removesuffix(".gz")) if suffix != ".parquet.gz" else None
    if opener is None:
        raise InputError(
            f"{setting} is {location}; a table ends in {listing(TABLE_SUFFIXES)}{nearest(suffix, TABLE_SUFFIXES)}"
        )
    try:
        if suffix != ".parquet":
            _refuse_utf16(setting, location)
        return _renamed(opener(setting, location, columns, takes_group), columns, f"{setting} {location}")
    except InputError:
        raise
    except STORAGE_ERRORS as error:
        kind = "Parquet" if suffix == ".parquet" else "text"
        raise InputError(f"{setting} {location} is not readable as {kind}: {one_line(error)}") from None


def _renamed(table: Table, columns: Mapping[str, str], named: str) -> Table:
    for ours, theirs in columns.items():
        if theirs not in table.columns:
            raise InputError(
                f"{named} has no column {theirs}, which columns has as {ours}{nearest(theirs, table.columns)}; it has "
                f"{listing(table.columns)}"
            )
    if not columns:
        return table
    # A column of one of our names may serve twice: a path that is the id as well.
    kept = [name for name in table.columns if name in OUR_COLUMNS or name not in columns.values()]
    theirs_of = dict(zip(kept, kept, strict=True)) | dict(columns)
    records = (
        replace(record, values={ours: record.values.get(theirs) for ours, theirs in theirs_of.items()})
        for record in table.records
    )
    return replace(table, columns=list(theirs_of), records=records)


@contextmanager
def _opened(location: str) -> Iterator[IO[bytes]]:
    """A file's bytes, unpacked where its name ends in .gz."""
    with open_bytes(location) as file:
        yield gzip.GzipFile(fileobj=file) if table_ending(location).endswith(".gz") else file  # type: ignore[misc]


def _open_jsonl(setting: str, location: str, columns: Mapping[str, str], _: TakesGroup) -> Table:
    records = _json_records(location)
    first = list(itertools.islice(records, PEEKED))
    found = sorted(set().union(*(record.values.keys() for record in first)))
    if first and not found:
        raise InputError(f"{setting} {location} {first[0].fault or 'line 1 is an object without keys'}")
    return Table(found, itertools.chain(first, records))


def _json_records(location: str) -> Iterator[Record]:
    with _opened(location) as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), start=1):
            if len(line) > MAX_LINE:
                yield Record({}, f"line {number} has more than {MAX_LINE} bytes; it and the lines after it are lost")
                return
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield _json_record(number, line)


def _json_record(number: int, line: bytes) -> Record:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Record({}, f"line {number} is not valid UTF-8 (byte {error.start})")
    except (ValueError, RecursionError) as error:
        return Record({}, f"line {number} is not JSON: {getattr(error, 'msg', None) or one_line(error)}")
    if not isinstance(value, dict):
        return Record({}, f"line {number} holds a {type(value).__name__}, not an object")
    return Record(value)


def _open_csv(setting: str, location: str, columns: Mapping[str, str], _: TakesGroup) -> Table:
    with _csv_text(location) as file:
        line = file.readline()
        separator = "," if "," in line else max(",;\t", key=line.count)  # none: one column
        if table_ending(location).startswith(".tsv"):
            separator = "\t"
        try:
            header = [name.strip() for name in next(csv.reader(itertools.chain([line], file), delimiter=separator), [])]
        except csv.Error as error:
            raise InputError(f"{setting} {location} line 1 is not CSV: {error}") from None
    repeated = sorted({column for column in header if header.count(column) > 1})
    if repeated:
        raise InputError(f"{setting} {location} has column {listing(repeated)} twice; name each column once")
    return Table(header, _csv_records(header, location, separator))


@contextmanager
def _csv_text(location: str) -> Iterator[io.TextIOWrapper]:
    """Open a CSV file; bytes that are no UTF-8 come as half surrogates, so that one bad line does not end the file."""
    csv.field_size_limit(MAX_FIELD)  # of the process; Python's own is 131,072
    with _opened(location) as file:
        yield io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _csv_records(header: Sequence[str], location: str, separator: str) -> Iterator[Record]:
    with _csv_text(location) as file:
        reader = csv.reader(file, delimiter=separator)
        next(reader, None)  # the header
        while True:
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Record({}, f"line {reader.line_num} is not CSV: {error}")
                continue
            if values:
                yield _csv_record(header, values, reader.line_num)


def _csv_record(header: Sequence[str], values: list[str], line: int) -> Record:
    if len(values) != len(header):
        return Record({}, f"line {line} has {len(values)} fields, the header {len(header)}")
    if any("\udc80" <= sign <= "\udcff" for value in values if not value.isascii() for sign in value):
        return Record({}, f"line {line} is not valid UTF-8")
    return Record(dict(zip(header, values, strict=True)))


def _open_parquet(setting: str, location: str, columns: Mapping[str, str], takes_group: TakesGroup) -> Table:
    file = open_parquet(location)
    groups = range(file.num_row_groups)
    schema = file.schema_arrow
    candidates = [columns["bytes"]] if "bytes" in columns else BYTE_COLUMNS
    byte_columns = [name for name in candidates if name in schema.names and _holds_bytes(schema.field(name).type)]
    wanted = {columns.get(name, name) for name in OUR_COLUMNS} & {*schema.names}
    return Table(
        schema.names,
        _parquet_records(file, sorted(wanted), filter(takes_group, groups)),
        byte_columns[0] if byte_columns else None,
        [0, *itertools.accumulate(file.metadata.row_group(group).num_rows for group in groups)],
        _class_names(schema.metadata or {}, columns.get("label", "label")),
    )


def _parquet_records(file: pq.ParquetFile, columns: list[str], groups: Iterable[int]) -> Iterator[Record]:
    """Yield the records without the content columns; a damaged row group is one record with a fault."""
    for group in groups:
        row = 0
        try:
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False):
                for record in records_of(batch):
                    yield Record(record.values, record.fault, (group, row))
                    row += 1
        except STORAGE_ERRORS as error:
            yield Record({}, f"row group {group} cannot be read from row {row} on: {one_line(error)}", (group, row))


def records_of(batch: pa.RecordBatch) -> Iterator[Record]:
    """Yield a batch's rows as records; one whose strings are no UTF-8 has a fault."""
    if not batch.num_columns:
        yield from [Record({})] * batch.num_rows
        return
    try:
        yield from [Record(values) for values in batch.to_pylist()]
    except UnicodeDecodeError:
        for index in range(batch.num_rows):
            try:
                yield Record(batch.slice(index, 1).to_pylist()[0])
            except UnicodeDecodeError:
                yield Record({}, "a string of the row is not valid UTF-8")


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type))
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)


def _class_names(metadata: Mapping[bytes, bytes], column: str) -> Sequence[str]:
    """The names of the classes that integer labels stand for, from Hugging Face's schema metadata."""
    try:
        label = json.loads(metadata[b"huggingface"])["info"]["features"][column]
        names = label["names"] if label["_type"] == "ClassLabel" else []
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


def _refuse_utf16(setting: str, location: str) -> None:
    with _opened(location) as file:
        if file.read(2) in UTF16_MARKS:
            raise InputError(f"{setting} {location} is UTF-16 text; save it as UTF-8")


_OPENERS: Mapping[str, Callable[[str, str, Mapping[str, str], TakesGroup], Table]] = {
    ".jsonl": _open_jsonl,
    ".csv": _open_csv,
    ".tsv": _open_csv,
    ".parquet": _open_parquet,
}
