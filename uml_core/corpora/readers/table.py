"""Format table: .jsonl, .csv, .tsv or .parquet with the content in a column text, path or, in Parquet, the bytes.

A path is relative to the setting `root`, or to the table's folder, and must stay inside it. Bytes stay in the table:
their rows name row group and row, and a worker reads them from there.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from uml_core.corpora.content import Cell
from uml_core.corpora.readers.base import CorpusSource, RecordNames, scalar
from uml_core.corpora.readers.table_files import (
    BYTE_COLUMNS,
    OUR_COLUMNS,
    TABLE_SUFFIXES,
    Table,
    open_table,
)
from uml_core.corpora.rows import Row
from uml_core.errors import InputError, listing
from uml_core.files.paths import (
    STORAGE_ERRORS,
    ConfinedFolder,
    base_name,
    is_uri,
    kind_of,
    one_line,
    parent,
    stamp_of,
    stamps_of,
)
from uml_core.files.patterns import files_of, relative_names

logger = logging.getLogger(__name__)

# Hugging Face data sets name their files SPLIT-00000-of-00003.parquet.
SPLIT_IN_NAME = re.compile(r"(.+)-\d{5}-of-\d{5}\.parquet")
ROWS_AT_ONCE = 1024  # remote files whose stamps are asked for side by side


def read_table(source: CorpusSource) -> Iterator[Row]:
    """Yield the rows of a table, or of a folder or pattern of tables.

    Raises:
        InputError: no table is found, it lacks a content column, or it cannot be read to its end.
    """
    corpus = source.corpus
    if corpus.root is not None and kind_of(corpus.root, f"corpora.{source.name}.root") != "folder":
        raise InputError(f"corpora.{source.name}.root is {corpus.root}, which is no folder; paths start there")
    files = files_of(source.location, TABLE_SUFFIXES, source.setting)
    names = RecordNames(corpus.split, by_path=source.ids_from_paths)
    for location, name in zip(files, relative_names(files), strict=True):
        table = _open(source, location, name)
        if table is None:
            continue
        names.prefix = f"{name}/" if len(files) > 1 else ""
        names.label_names = table.label_names
        split = SPLIT_IN_NAME.fullmatch(base_name(location))
        names.default_split = split.group(1) if split and "split" not in table.columns else corpus.split
        if not table.columns:
            continue
        content = _content(source, location, table)
        if location == files[0] and source.takes(name) and (meant := _meant(table.columns)):
            logger.warning("%s %s%s", source.setting, location, meant)
        rows = _rows(source, location, table, names, content)
        try:
            yield from _with_remote_stamps(rows) if content == "path" and is_uri(corpus.root or location) else rows
        except STORAGE_ERRORS as error:
            raise InputError(f"{source.setting} {location} cannot be read to its end: {one_line(error)}") from None


def _open(source: CorpusSource, location: str, name: str) -> Table | None:
    """A table, or the row groups of one, that the slice takes; None where it takes nothing."""
    columns = {str(ours): theirs for ours, theirs in source.corpus.columns.items()}
    if source.slice is not None and location in source.slice.in_groups:
        return open_table(source.setting, location, columns, lambda group: source.takes(f"{name}/{group}"))
    return open_table(source.setting, location, columns) if source.takes(name) else None


def _rows(source: CorpusSource, location: str, table: Table, names: RecordNames, content: str) -> Iterator[Row]:
    """Yield the row of each record; the stamps of remote files are left out."""
    stamp, root = stamp_of(location), ConfinedFolder(source.corpus.root or parent(location))
    is_text = source.corpus.modality == "text"
    for index, record in enumerate(table.records):
        if table.starts:
            index = table.starts[record.position[0]] + record.position[1]
        row = names.row(index, record.values, record.fault)
        fault: str | None
        if record.fault is not None:
            yield row
        elif content not in ("text", "path"):
            cell = Cell(*record.position, content)
            yield replace(row, path=location, member=cell, stamp=stamp)
        elif content == "text":
            text, fault = scalar("text", record.values.get("text"))
            yield replace(row, text=text, fault=row.fault or fault)
        else:
            relative, fault = scalar("path", record.values.get("path"))
            if relative is None:
                yield replace(row, fault=row.fault or fault or "no path")
                continue
            path, fault = root.resolve(relative)
            fault = row.fault or fault
            own_stamp = "" if fault or is_uri(path) else stamp_of(path)
            yield replace(row, path=path, stamp=own_stamp, fault=fault, is_text=is_text)


def _with_remote_stamps(stream: Iterator[Row]) -> Iterator[Row]:
    while batch := list(itertools.islice(stream, ROWS_AT_ONCE)):
        stamps = iter(stamps_of([row.path for row in batch if row.path is not None and row.fault is None]))
        yield from (row if row.path is None or row.fault else replace(row, stamp=next(stamps)) for row in batch)


def _content(source: CorpusSource, location: str, table: Table) -> str:
    modality, columns = source.corpus.modality, table.columns
    if modality != "text" and table.byte_column is not None:
        return table.byte_column
    if "path" in columns:
        return "path"
    if "text" not in columns:
        raise InputError(
            f"{source.setting} {location} has columns {listing(columns)}; a table needs a column text or path"
            f", or in Parquet bytes in {listing(BYTE_COLUMNS)}{_meant(columns)}"
        )
    if modality != "text":
        raise InputError(
            f"corpora.{source.name} is of modality {modality}, so its table {location} needs a column path"
            f", or in Parquet bytes in {listing(BYTE_COLUMNS)}{_meant(columns)}"
        )
    return "text"


def _meant(columns: Sequence[str]) -> str:
    """In words, columns that have one of our names but for case and spaces, and are not read."""
    ours = [name for name in OUR_COLUMNS if name not in columns]
    pairs = [f"{name}: {theirs}" for name in ours for theirs in columns if theirs.strip().casefold() == name]
    return f"; a column of another spelling is read with columns: {{{listing(pairs)}}}" if pairs else ""
