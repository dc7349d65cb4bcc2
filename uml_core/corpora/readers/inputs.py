"""Unlabelled inputs for prediction: every file of a folder at any depth, every row of a table, every sample of shards.

In: a path, pattern or URI. Out: the rows the readers of corpora yield, so a worker reads them the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from uml_core.config import CorpusConfig
from uml_core.corpora.readers import stream_rows
from uml_core.corpora.readers.base import SUFFIXES, checked
from uml_core.corpora.readers.folder import Census, no_file, walk
from uml_core.corpora.readers.table_files import TABLE_SUFFIXES
from uml_core.corpora.rows import Row
from uml_core.errors import InputError
from uml_core.files.paths import base_name, kind_of, stamp_of

SETTING = "--input"
SPLIT = "predict"


def stream_inputs(path: str | Path, modality: str) -> Iterator[Row]:
    """Yield one row an input; its id is the path relative to the folder, or the table's or shard's id.

    An input that cannot be used is yielded as well, with the reason as its `fault`.

    Raises:
        InputError: here or while iterating; the path is missing, or holds nothing of the modality.
    """
    location = str(path)
    kind = kind_of(location, SETTING)
    ending = PurePosixPath(base_name(location)).suffix.lower()
    if kind != "folder" and ending in (*TABLE_SUFFIXES, ".tar"):
        settings = {"modality": modality, "format": "webdataset" if ending == ".tar" else "table"}
        return stream_rows("input", CorpusConfig.model_validate({**settings, "path": location, "split": SPLIT}))
    if kind == "missing":
        raise InputError(
            f"{SETTING} is {location}, which does not exist; give a folder of {modality} files, or a table"
        )
    if kind == "file" and ending not in SUFFIXES[modality]:
        raise InputError(no_file(f"{SETTING} {location}", modality))
    return checked(_file(location, modality) if kind == "file" else _below(location, modality))


def _file(location: str, modality: str) -> Iterator[Row]:
    yield Row(base_name(location), None, SPLIT, path=location, stamp=stamp_of(location), is_text=modality == "text")


def _below(folder: str, modality: str) -> Iterator[Row]:
    found = False
    is_text = modality == "text"
    for each in walk(folder, Census(modality)):
        found = True
        entry = each.entry
        yield Row(each.relative, None, SPLIT, path=entry.location, stamp=entry.stamp, fault=each.fault, is_text=is_text)
    if not found:
        raise InputError(no_file(f"{SETTING} {folder}", modality))
