"""Unlabelled inputs for prediction: every file of a folder at any depth, every row of a table, every sample of shards.

In: a path, pattern or URI. Out: the rows the readers of corpora yield, so a worker reads them the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from uml_core.config import CorpusConfig
from uml_core.corpora.readers import stream_rows
from uml_core.corpora.readers.base import SUFFIXES, checked
from uml_core.corpora.readers.folder import walk
from uml_core.corpora.readers.left_out import Census, no_file
from uml_core.corpora.readers.table_files import TABLE_SUFFIXES, table_ending
from uml_core.corpora.rows import Row
from uml_core.errors import InputError
from uml_core.files.paths import base_name, kind_of, stamp_of

SETTING = "--input"
SPLIT = "predict"


def stream_inputs(path: str | Path, modality: str, *, root: str | None = None) -> Iterator[Row]:
    """Yield one row an input; its id is the table's or shard's, else its path: in the folder, or as the table has it.

    The second row of one path is named by its position; of several tables, paths and positions are behind the name.

    An input that cannot be used is yielded as well, with the reason as its `fault`.

    Args:
        path: a folder, a file, a table or shards.
        modality: of the inputs.
        root: the folder that a table's column `path` starts in; None: the table's own.

    Raises:
        InputError: here or while iterating; the path is missing, or holds nothing of the modality.
    """
    location = str(path)
    kind = kind_of(location, SETTING)
    ending = table_ending(location)
    is_table = kind != "folder" and ending in TABLE_SUFFIXES
    if root is not None and not is_table:
        raise InputError(f"--root is {root}, and {SETTING} {location} is no table; it is where a table's paths start")
    if is_table or (kind != "folder" and ending == ".tar"):
        layout = {"format": "table", "root": root} if is_table else {"format": "webdataset"}
        settings = {**layout, "modality": modality, "path": location, "split": SPLIT}
        return stream_rows("input", CorpusConfig.model_validate(settings), ids_from_paths=True)
    if kind == "missing":
        raise InputError(
            f"{SETTING} is {location}, which does not exist; give a folder of {modality} files, or a table"
        )
    if kind == "file" and ending not in SUFFIXES[modality]:
        raise InputError(no_file(f"{SETTING} {location}", modality, [ending]))
    return checked(_file(location, modality) if kind == "file" else _below(location, modality))


def _file(location: str, modality: str) -> Iterator[Row]:
    yield Row(base_name(location), None, SPLIT, path=location, stamp=stamp_of(location), is_text=modality == "text")


def _below(folder: str, modality: str) -> Iterator[Row]:
    found = False
    is_text, census = modality == "text", Census(modality)
    for each in walk(folder, census):
        found = True
        entry = each.entry
        yield Row(each.relative, None, SPLIT, path=entry.location, stamp=entry.stamp, fault=each.fault, is_text=is_text)
    if not found:
        raise InputError(no_file(f"{SETTING} {folder}", modality, census.other_endings))
    census.warn(SETTING)
