"""Unlabelled inputs for prediction: every file of a folder at any depth, every row of a table, every sample of shards.

In: a path, pattern or URI. Out: the rows the readers of corpora yield, so a worker reads them the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from uml_core.config import CorpusConfig
from uml_core.corpora.readers.base import SUFFIXES
from uml_core.corpora.readers.folder import Census, no_file, walk
from uml_core.corpora.readers.stream import checked, stream_rows
from uml_core.corpora.readers.table_files import TABLE_SUFFIXES
from uml_core.corpora.rows import Row
from uml_core.errors import InputError
from uml_core.files.places import base_name, kind_of, stamp_of

SETTING = "--input"
SPLIT = "predict"


def stream_inputs(path: str | Path, modality: str) -> Iterator[Row]:
    """Yield one row an input; its id is the path relative to the folder, or the table's or shard's id.

    An input that cannot be used is yielded as well, with the reason as its `fault`.

    Raises:
        InputError: here or while iterating; the path is missing, or holds nothing of the modality.
    """
    place = str(path)
    kind = kind_of(place, SETTING)
    ending = PurePosixPath(base_name(place)).suffix.lower()
    if kind != "folder" and ending in (*TABLE_SUFFIXES, ".tar"):
        settings = {"modality": modality, "format": "webdataset" if ending == ".tar" else "table"}
        return stream_rows("input", CorpusConfig.model_validate({**settings, "path": place, "split": SPLIT}))
    if kind == "missing":
        raise InputError(f"{SETTING} is {place}, which does not exist; give a folder of {modality} files, or a table")
    if kind == "file" and ending not in SUFFIXES[modality]:
        raise InputError(no_file(f"{SETTING} {place}", modality))
    return checked(_file(place, modality) if kind == "file" else _below(place, modality))


def list_inputs(path: str | Path, modality: str) -> list[Row]:
    """Return a few inputs as a list. Raises what `stream_inputs` raises."""
    return list(stream_inputs(path, modality))


def _file(place: str, modality: str) -> Iterator[Row]:
    yield Row(base_name(place), None, SPLIT, path=place, stamp=stamp_of(place), is_text=modality == "text")


def _below(folder: str, modality: str) -> Iterator[Row]:
    found = False
    is_text = modality == "text"
    for each in walk(folder, Census(modality)):
        found = True
        entry = each.entry
        yield Row(each.relative, None, SPLIT, path=entry.place, stamp=entry.stamp, fault=each.fault, is_text=is_text)
    if not found:
        raise InputError(no_file(f"{SETTING} {folder}", modality))
