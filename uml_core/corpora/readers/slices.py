"""Into how many slices a large corpus is split, so that it is listed by many tasks: by its shards, tables or folders.

A piece belongs to a slice by the hash of its name, so a piece that is added moves no other.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from uml_core.corpora.readers.base import SUFFIXES, CorpusSource
from uml_core.corpora.readers.folder import class_depth
from uml_core.corpora.readers.table_files import TABLE_SUFFIXES, large_files, table_ending
from uml_core.corpora.rows import hash64
from uml_core.files.paths import STORAGE_ERRORS, list_folder, open_parquet, stamps_of
from uml_core.files.patterns import files_of

logger = logging.getLogger(__name__)

FEWEST: Mapping[str, int] = {"webdataset": 256, "table": 256, "folder": 4096}  # pieces; fewer are not split
PIECES_A_SLICE, MOST = 4, 1024
ENDINGS: Mapping[str, Sequence[str]] = {"webdataset": (".tar",), "table": TABLE_SUFFIXES}


def slices_for(source: CorpusSource) -> int:
    """1 below FEWEST pieces, else a slice for every four, at most MOST; each row group of a large file may have one."""
    files = _files(source) if source.corpus.format in ENDINGS else []
    pieces = _num_folders(source) if source.corpus.format == "folder" else len(files)
    groups = _num_groups(source, files) if source.corpus.format == "table" else 0
    is_large = groups > 1 or pieces >= FEWEST.get(source.corpus.format, pieces + 1)
    return min(MOST, pieces // PIECES_A_SLICE + groups) if is_large else 1


def files_digest(source: CorpusSource) -> str | None:
    """A short text over a corpus's settings and its files' names, sizes and times; None of a corpus of folders.

    Equal where its shards or tables, and with them their rows, are as they were. Folders are as many files as rows.
    """
    if source.corpus.format not in ENDINGS:
        return None
    files, endings = _files(source), sorted(SUFFIXES[source.corpus.modality])
    return f"{hash64(source.corpus.model_dump_json(), *endings, *files, *stamps_of(files)):016x}"


def _num_groups(source: CorpusSource, files: Sequence[str]) -> int:
    """The row groups of large Parquet files; other large tables are warned of."""
    num_groups = 0
    for file in large_files(files):
        if table_ending(file) == ".parquet":
            with contextlib.suppress(*STORAGE_ERRORS):  # the reader says that it cannot be read
                num_groups += open_parquet(file).num_row_groups
        else:
            logger.warning(
                "%s %s is large, and listed by one process; split it, or write it as Parquet, of which each row group "
                "is listed by a task of its own",
                source.setting,
                file,
            )
    return num_groups


def files_in_groups(source: CorpusSource) -> frozenset[str]:
    """The large Parquet files of a corpus, whose row groups are pieces. Asks for the size of every table."""
    files = _files(source) if source.corpus.format == "table" else []
    return frozenset(file for file in large_files(files) if table_ending(file) == ".parquet")


def _files(source: CorpusSource) -> list[str]:
    return files_of(source.location, ENDINGS[source.corpus.format], source.setting)


def _num_folders(source: CorpusSource) -> int:
    """The class folders, counted up to where they are many enough; 1 where it is no folder."""
    if source.kind() != "folder":
        return 1
    root = source.location
    folders = _folders(root, root)
    if class_depth(source) == 2:
        folders = (inner for folder in folders for inner in _folders(folder, root))
    return sum(1 for _ in islice(folders, MOST * PIECES_A_SLICE))


def _folders(folder: str, root: str) -> Iterator[str]:
    """The folders in a folder that the reader follows; none of one that cannot be listed, which the reader says."""
    with contextlib.suppress(*STORAGE_ERRORS):
        entries = list_folder(folder, root)
        yield from (entry.location for entry in entries if entry.kind in ("folder", "linked folder"))
