"""Readers: one function a `format`, from a path to rows that are not read yet.

In: a corpus of the experiment file. Out: a list of `Row` in a fixed order, ids unique within the corpus.
Ready embeddings have no raw rows; `uml_core.corpora.ready` adopts them.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from uml_core.config import CorpusConfig
from uml_core.corpora.rows import Row, canonical_split
from uml_core.errors import InputError, listing, nearest

SUFFIXES = {
    "image": {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"},
    "audio": {".wav", ".flac", ".ogg", ".mp3", ".oga", ".opus", ".aiff"},
    "text": {".txt", ".md"},
}
TABLE_SUFFIXES = (".jsonl", ".csv", ".parquet")


def list_rows(name: str, corpus: CorpusConfig) -> list[Row]:
    """List the rows of a corpus in a fixed order, without reading their content.

    Raises:
        InputError: the path is missing, empty or not of the stated format, labels are of mixed types, or ids repeat.
    """
    path = Path(corpus.path)
    if not path.exists():
        raise InputError(f"corpora.{name}.path is {corpus.path}, which does not exist; give the path of the corpus")
    rows = READERS[corpus.format](name, corpus, path)
    if not rows:
        raise InputError(f"corpora.{name} is empty: no rows found in {corpus.path} (format {corpus.format})")
    repeated = [row_id for row_id, count in Counter(row.id for row in rows).items() if count > 1]
    if repeated:
        raise InputError(f"corpora.{name} has repeated ids ({listing(repeated, limit=3)}); ids must be unique")
    return rows


def _folder(name: str, corpus: CorpusConfig, path: Path) -> list[Row]:
    """Read PATH/SPLIT/CLASS/FILE, or PATH/CLASS/FILE (all train)."""
    if not path.is_dir():
        raise InputError(f"corpora.{name}.path is {corpus.path}, a file; format folder needs a folder of classes")
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and not _is_hidden(file.relative_to(path))]
    depth = 3 if any(len(file.relative_to(path).parts) == 3 for file in files) else 2
    odd = [file.relative_to(path) for file in files if len(file.relative_to(path).parts) != depth]
    if odd:
        raise InputError(
            f"corpora.{name}.path {corpus.path} holds {odd[0]}; "
            "expected every file as SPLIT/CLASS/FILE, or every file as CLASS/FILE"
        )
    known = SUFFIXES[corpus.modality]
    rows = []
    for file in files:
        *split, label, _ = file.relative_to(path).parts
        if file.suffix.lower() in known:
            rows.append(_file_row(file, file.relative_to(path).as_posix(), label, split[0] if split else "train"))
    if files and not rows:
        raise InputError(
            f"corpora.{name}.path {corpus.path} holds no {corpus.modality} file; "
            f"known endings are {listing(sorted(known))}"
        )
    return rows


def _table(name: str, corpus: CorpusConfig, path: Path) -> list[Row]:
    """Read jsonl, csv or parquet with columns text or path, label, split, and optionally id."""
    records = list(_records(name, path))
    if not records:
        return []
    columns = set().union(*(record.keys() for record in records[:1000]))
    content = "path" if "path" in columns else "text"
    if content not in columns:
        raise InputError(
            f"corpora.{name}.path {path} has columns {listing(sorted(columns))}; a table needs a column text or path"
        )
    if content == "text" and corpus.modality != "text":
        raise InputError(f"corpora.{name} is of modality {corpus.modality}, so its table {path} needs a column path")
    _check_label_types(name, path, records)
    width = len(str(len(records)))
    rows = []
    for index, record in enumerate(records):
        row_id = str(record["id"]) if record.get("id") not in (None, "") else f"row-{index:0{width}d}"
        label = None if record.get("label") in (None, "") else str(record["label"])
        split = canonical_split(str(record.get("split") or "train"))
        if content == "path":
            rows.append(_file_row(path.parent / str(record["path"]), row_id, label, split))
        else:
            rows.append(Row(row_id, label, split, text=None if record["text"] is None else str(record["text"])))
    return rows


def _descriptors(name: str, corpus: CorpusConfig, path: Path) -> list[Row]:
    """Read {class: [sentence, ...]} or {class: {template: [sentence, ...]}}; all train."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"corpora.{name}.path {path} is not JSON: {error}") from None
    if not isinstance(tree, dict):
        raise InputError(f"corpora.{name}.path {path} holds a {type(tree).__name__}; expected {{class: [sentences]}}")
    rows = []
    for label, value in tree.items():
        groups = value if isinstance(value, dict) else {"": value}
        for template, sentences in groups.items():
            if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
                raise InputError(
                    f"corpora.{name}.path {path} has no list of sentences for class '{label}'; "
                    "expected {class: [sentences]} or {class: {template: [sentences]}}"
                )
            prefix = f"{label}/{template}" if template else label
            rows += [Row(f"{prefix}/{index}", label, "train", text=text) for index, text in enumerate(sentences)]
    return rows


READERS: Mapping[str, Callable[[str, CorpusConfig, Path], list[Row]]] = {
    "folder": _folder,
    "table": _table,
    "descriptors": _descriptors,
}


def _records(name: str, path: Path) -> Iterator[dict[str, Any]]:
    suffix = path.suffix.lower()
    if suffix not in TABLE_SUFFIXES:
        raise InputError(
            f"corpora.{name}.path is {path}; a table ends in {listing(TABLE_SUFFIXES)}{nearest(suffix, TABLE_SUFFIXES)}"
        )
    if suffix == ".parquet":
        yield from pq.read_table(path).to_pylist()
    elif suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)
    else:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _json_record(name, path, number, line)


def _json_record(name: str, path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"corpora.{name}.path {path} line {number} is not JSON: {error.msg}") from None
    if not isinstance(record, dict):
        raise InputError(f"corpora.{name}.path {path} line {number} holds a {type(record).__name__}, not an object")
    return record


def _check_label_types(name: str, path: Path, records: list[dict[str, Any]]) -> None:
    first: dict[str, Any] = {}
    for record in records:
        label = record.get("label")
        if label not in (None, ""):
            first.setdefault(type(label).__name__, label)
    if len(first) > 1:
        examples = listing(f"{value!r} ({kind})" for kind, value in first.items())
        raise InputError(f"corpora.{name}.path {path} has labels of mixed types: {examples}; write them all as strings")


def _file_row(file: Path, row_id: str, label: str | None, split: str) -> Row:
    try:
        status = file.stat()
        stamp = f"{status.st_size}-{status.st_mtime_ns}"
    except OSError:
        stamp = "missing"  # the row is rejected when it is read
    return Row(row_id, label, canonical_split(split), path=str(file), stamp=stamp)


def _is_hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)
