"""Several files as one corpus: a folder of them, or a pattern such as data/train-{0000..0099}.tar or data/*.parquet."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Iterator, Sequence

from uml_core.errors import InputError, listing
from uml_core.files.paths import (
    STORAGE_ERRORS,
    Entry,
    base_name,
    is_uri,
    kind_of,
    list_folder,
    local_path,
    one_line,
    parent,
)

BRACES = re.compile(r"\{([^{}]*)\}")
NUMBERS = re.compile(r"(\d+)\.\.(\d+)")
MAX_EXPANDED = 1_000_000
FILE_KINDS = ("file", "outside file")


def files_of(location: str, endings: Sequence[str], setting: str) -> list[str]:
    """The files that a path, a folder or a pattern stands for: patterns in their order, the rest by name.

    A folder stands for the files with one of the endings in it, at any depth.

    Raises:
        InputError: nothing is found, a file of a brace pattern is missing, or the pattern cannot be read.
    """
    kind = kind_of(location, setting)
    if kind == "file":
        return [location]
    if kind == "folder":
        files = [file for file in _below(location, setting) if base_name(file).lower().endswith(tuple(endings))]
        if not files:
            raise InputError(f"{setting} is {location}, a folder without any file that ends in {listing(endings)}")
        return files
    files = []
    for pattern in expand_braces(location, setting):
        matches = _matches(pattern, setting)
        if not matches:
            missing = "" if pattern == location else f": there is no {pattern}"
            raise InputError(f"{setting} is {location}, which does not exist{missing}; give the path of the corpus")
        files += matches
    return files


def expand_braces(pattern: str, setting: str) -> list[str]:
    """The strings a pattern with {0..9}, {000..999} or {a,b} stands for, in order, like a shell."""
    match = BRACES.search(pattern)
    if match is None:
        return [pattern]
    choices, rests = _choices(match), expand_braces(pattern[match.end() :], setting)
    count = len(choices) * len(rests)
    if count > MAX_EXPANDED:
        raise InputError(f"{setting}: {pattern} stands for {count} files; at most {MAX_EXPANDED} are taken")
    return [pattern[: match.start()] + choice + rest for choice in choices for rest in rests]


def _choices(match: re.Match[str]) -> list[str]:
    inside = match.group(1)
    if numbers := NUMBERS.fullmatch(inside):
        first, last = numbers.groups()
        step = 1 if int(last) >= int(first) else -1
        length = min(abs(int(last) - int(first)) + 1, MAX_EXPANDED + 1)
        width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
        return [f"{int(first) + step * index:0{width}d}" for index in range(length)]
    return inside.split(",") if "," in inside else [match.group(0)]


def _matches(pattern: str, setting: str) -> list[str]:
    """The files a pattern with * ? [] stands for, sorted; in a URI only its last component may hold them."""
    if kind_of(pattern, setting) == "file":
        return [pattern]
    if not is_uri(pattern):
        found = sorted(glob.glob(local_path(pattern), recursive=True))  # noqa: PTH207
        return [file for file in found if kind_of(file, setting) == "file"]
    name = base_name(pattern)
    if not any(sign in name for sign in "*?["):
        return []
    entries = (entry for entry in _listed(parent(pattern), setting) if entry.kind in FILE_KINDS)
    return [entry.location for entry in entries if fnmatch.fnmatchcase(entry.name, name)]


def relative_names(files: Sequence[str]) -> list[str]:
    """Each file's name from the folder that all of them lie in: what tells them apart."""
    paths = [os.path.normpath(file.partition("://")[2].partition("?")[0] if is_uri(file) else file) for file in files]
    common = os.path.commonpath([os.path.dirname(path) for path in paths])  # noqa: PTH120
    return [path[len(common) :].lstrip("/") for path in paths]


def _below(root: str, setting: str) -> Iterator[str]:
    """Yield the files below a folder; linked files are taken (download caches are made of them), linked folders not."""
    for entry in _listed(root, setting):
        if entry.kind in FILE_KINDS:
            yield entry.location
        elif entry.kind == "folder":
            yield from _below(entry.location, setting)


def _listed(folder: str, setting: str) -> Iterator[Entry]:
    try:
        return list_folder(folder, folder)
    except STORAGE_ERRORS as error:
        raise InputError(f"{setting}: {folder} cannot be listed: {one_line(error)}") from None
