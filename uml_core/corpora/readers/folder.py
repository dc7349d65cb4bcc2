"""Format folder: PATH/SPLIT/CLASS/FILE or PATH/CLASS/FILE, walked one folder at a time.

The first file of a known ending says which of the two it is; a file at another depth becomes a row with a fault.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from uml_core.corpora.readers.base import SUFFIXES, CorpusSource
from uml_core.corpora.readers.left_out import Census, no_file
from uml_core.corpora.rows import Row, canonical_split
from uml_core.errors import InputError
from uml_core.files.paths import STORAGE_ERRORS, Entry, EntryKind, list_folder, one_line

# Why an entry cannot be a row; None: it can.
FAULTS: Mapping[EntryKind, str | None] = {
    "file": None,
    "other": "not a regular file",
    "broken": "link leads nowhere",
    "linked folder": "link to a folder below the class folders",
    "outside file": "link leads outside the corpus folder",
    "outside folder": "link leads outside the corpus folder",
}
LAYOUT = "expected every file as SPLIT/CLASS/FILE, or every file as CLASS/FILE"


@dataclass(frozen=True, slots=True)
class Found:
    """An entry with its path relative to the corpus folder; `fault` where it cannot be followed."""

    relative: str
    entry: Entry
    fault: str | None = None


def read_folder(source: CorpusSource) -> Iterator[Row]:
    """Yield a row a file of the modality; all train where there are no splits.

    Raises:
        InputError: the path is a file, or holds no file of the modality in a class folder.
    """
    corpus = source.corpus
    if source.kind() == "file":
        raise InputError(f"{source.setting} is {source.location}, a file; format folder needs a folder of classes")
    census = Census(corpus.modality)
    depth = None if source.slice is None else class_depth(source) + 1
    first_odd: str | None = None
    for found in walk(source.location, census, source if depth else None, depth or 0):
        parts = found.relative.split("/")
        fault = found.fault
        if fault is None and depth is None and len(parts) in (2, 3):
            depth = len(parts)
        if fault is None and len(parts) != depth:
            first_odd = first_odd or found.relative
            fault = f"lies at another depth than the other files; {LAYOUT}"
        split = parts[0] if len(parts) == 3 else corpus.split
        label = parts[-2] if len(parts) in (2, 3) and len(parts) == depth else None
        yield Row(
            found.relative,
            label,
            canonical_split(split),
            path=found.entry.location,
            stamp=found.entry.stamp,
            fault=fault,
            is_text=corpus.modality == "text",
        )
    if depth is None and first_odd is not None:
        raise InputError(f"{source.setting} {source.location} holds {first_odd}; {LAYOUT}")
    if depth is None and census.other_endings:
        raise InputError(no_file(f"{source.setting} {source.location}", corpus.modality, census.other_endings))
    census.warn(f"corpora.{source.name}")


def class_depth(source: CorpusSource) -> int:
    """How deep class folders lie: 1, or 2 where splits lie above them, as the first file says."""
    found = walk(source.location, Census(source.corpus.modality))
    depths = (each.relative.count("/") for each in found if each.fault is None)
    return next((depth for depth in depths if depth in (1, 2)), 1)


def walk(root: str, census: Census, source: CorpusSource | None = None, depth: int = 0) -> Iterator[Found]:
    """Yield the files of a modality under a folder, each folder in the order of its names.

    Links are followed where they stay inside, but a linked folder only as a split or class, so that a circle of links
    ends. What cannot be followed is yielded with a fault. Memory holds the names of the folders on the way down. Of a
    `source` whose files lie at a `depth` only the class folders that it takes are walked.

    Raises:
        InputError: the folder itself cannot be listed.
    """
    try:
        entries = list_folder(root, root)
    except STORAGE_ERRORS as error:
        raise InputError(f"{root} cannot be listed: {one_line(error)}") from None
    yield from _below(root, "", entries, census, source, depth)


def _below(
    root: str, folder: str, entries: Iterator[Entry], census: Census, source: CorpusSource | None, depth: int
) -> Iterator[Found]:
    is_barren = True  # so far: no folder and no file of a known ending
    for entry in entries:
        relative = f"{folder}/{entry.name}" if folder else entry.name
        if source is not None and not _is_taken(source, relative, entry, depth):
            is_barren = False  # as far as this slice sees
            continue
        ending = PurePosixPath(entry.name).suffix.lower()
        if not entry.kind.endswith("folder") and ending not in SUFFIXES[census.modality]:
            census.other_endings[ending[:12]] += 1
            continue
        is_barren = False
        if entry.kind == "folder" or (entry.kind == "linked folder" and relative.count("/") <= 1):
            try:
                inner = list_folder(entry.location, root)
            except STORAGE_ERRORS as error:
                yield Found(relative, entry, f"folder cannot be listed: {one_line(error)}")
            else:
                yield from _below(root, relative, inner, census, source, depth)
        else:
            yield Found(relative, entry, FAULTS[entry.kind])
    if is_barren and folder:
        census.barren.append(folder)


def _is_taken(source: CorpusSource, relative: str, entry: Entry, depth: int) -> bool:
    """Whether an entry is to be walked: a class folder by its name, what lies above by its folder's, all below one."""
    level = relative.count("/") + 1
    if level >= depth:
        return True
    if entry.kind.endswith("folder"):
        return level < depth - 1 or source.takes(relative)
    return source.takes(relative.rpartition("/")[0])
