"""Paths and URIs of corpora: local, or what pyarrow or fsspec opens (s3://, gs://, abfs://, hdfs://, file://).

A local path is handled with the operating system's own calls, a URI through a pyarrow filesystem that is made once a
process. Paths of files stay whole strings (path or URI), so a row can be read on any machine by itself.
"""

from __future__ import annotations

import functools
import io
import json
import os
import posixpath
import stat
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast
from urllib.parse import quote, unquote, urlsplit

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from uml_core.errors import InputError
from uml_core.files.outages import PatientS3FileSystem

# What pyarrow and fsspec raise for a path or URI that is missing, forbidden, unreachable or unknown, and gzip for one
# that is damaged.
STORAGE_ERRORS = (OSError, pa.ArrowException, ValueError, ImportError, EOFError, zlib.error)

# other: a pipe, a socket; broken: gone, or a link to nothing; outside: a link that leaves the corpus folder
EntryKind = Literal["file", "folder", "linked folder", "other", "broken", "outside file", "outside folder"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a folder: `location` (path or URI) opens it; `stamp` is size and time of a file."""

    name: str
    location: str
    kind: EntryKind
    stamp: str = ""


def is_uri(location: str) -> bool:
    """Whether it names a remote filesystem; file:// counts as local."""
    return "://" in location and not location.startswith("file://")


def local_path(location: str) -> str:
    return unquote(urlsplit(location).path) if location.startswith("file://") else location


def join(folder: str, relative: str) -> str:
    """The path or URI of a relative path in a folder; a URI keeps its query."""
    if not is_uri(folder):
        return os.path.join(local_path(folder), relative)  # noqa: PTH118 - a row's path is a string, a million times
    base, _, query = folder.partition("?")
    return f"{base.rstrip('/')}/{quote(relative)}" + (f"?{query}" if query else "")


def parent(location: str) -> str:
    if not is_uri(location):
        return str(Path(local_path(location)).parent)
    base, _, query = location.partition("?")
    return base.rpartition("/")[0] + (f"?{query}" if query else "")


def base_name(location: str) -> str:
    return (
        unquote(location.partition("?")[0].rstrip("/").rpartition("/")[2]) if is_uri(location) else Path(location).name
    )


def remote(location: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a URI, one a process, and the path within it."""
    parts = urlsplit(location.replace("#", "%23"))
    filesystem, root = filesystem_of(parts.scheme, parts.netloc, parts.query)
    return filesystem, (root + unquote(parts.path)).rstrip("/")


def opened(location: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of an absolute path or URI, and the path within it. Raises one of STORAGE_ERRORS."""
    return remote(location) if is_uri(location) else (pafs.LocalFileSystem(), local_path(location))


@functools.lru_cache(maxsize=64)
def filesystem_of(scheme: str, netloc: str, query: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a URI's parts, one a process, and what its paths start with."""
    uri = f"{scheme}://{netloc}/root" + (f"?{query}" if query else "")
    try:
        filesystem, path = pafs.FileSystem.from_uri(uri)
    except pa.ArrowInvalid:
        if scheme not in fsspec.available_protocols():
            raise
        other, path = fsspec.core.url_to_fs(uri)
        filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(other))
    if scheme == "s3":
        filesystem = PatientS3FileSystem.like(filesystem)
    return filesystem, path.removesuffix("/root")


def check_there(location: str) -> None:
    """Raise OSError within seconds where nobody is at an S3 address, or has no such bucket; looks once a process.

    A disk, and storage of another kind, says so by itself.
    """
    if is_uri(location):
        parts = urlsplit(location)
        _check_there(parts.scheme, parts.netloc, parts.query)


@functools.lru_cache(maxsize=64)
def _check_there(scheme: str, netloc: str, query: str) -> None:
    filesystem, bucket = filesystem_of(scheme, netloc, query)
    if isinstance(filesystem, PatientS3FileSystem):
        filesystem.check_there(bucket)


def kind_of(location: str, setting: str) -> str:
    """File, folder or missing. Raises InputError, with the setting's name, for what cannot be opened."""
    try:
        if is_uri(location):
            check_there(location)
            filesystem, path = remote(location)
            kinds = {pafs.FileType.File: "file", pafs.FileType.Directory: "folder"}
            return kinds.get(filesystem.get_file_info(path).type, "missing")
        mode = os.stat(local_path(location)).st_mode  # noqa: PTH116
    except FileNotFoundError:
        return "missing"
    except STORAGE_ERRORS as error:
        raise InputError(f"{setting} is {location}, which cannot be opened: {one_line(error)}") from None
    return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "missing"


def one_line(error: BaseException) -> str:
    """An error's message without line breaks, and without Python's errno and path where there are any."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:300] or type(error).__name__


def stamp_of(location: str) -> str:
    """Size and time of a file, or "missing". Raises OSError for a remote filesystem that cannot be reached."""
    if is_uri(location):
        filesystem, path = remote(location)
        return _info_stamp(filesystem.get_file_info(path))
    try:
        return status_stamp(os.stat(local_path(location)))  # noqa: PTH116
    except OSError:
        return "missing"


def stamps_of(locations: Sequence[str]) -> list[str]:
    """The stamps of files, asked for side by side."""
    with ThreadPoolExecutor(max_workers=32) as pool:
        return list(pool.map(stamp_of, locations))


def status_stamp(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"


def _info_stamp(info: pafs.FileInfo) -> str:
    return "missing" if info.type != pafs.FileType.File else f"{info.size}-{info.mtime_ns or 0}"


def list_folder(folder: str, root: str) -> Iterator[Entry]:
    """A folder's entries in the order of their names, hidden ones left out; only the names are held at once.

    Args:
        folder: path or URI.
        root: the corpus folder, which links must not leave.

    Raises:
        OSError or pyarrow's errors: the folder cannot be listed.
    """
    if not is_uri(folder):
        path, real_root = local_path(folder), os.path.realpath(local_path(root))
        names = sorted(name for name in os.listdir(path) if not name.startswith("."))  # noqa: PTH208
        return (_local_entry(name, os.path.join(path, name), real_root) for name in names)  # noqa: PTH118
    filesystem, path = remote(folder)
    infos = filesystem.get_file_info(pafs.FileSelector(path))
    infos = sorted((info for info in infos if not info.base_name.startswith(".")), key=lambda info: info.base_name)
    return (_remote_entry(info, join(folder, info.base_name)) for info in infos)


def _local_entry(name: str, path: str, real_root: str) -> Entry:
    try:
        status = os.lstat(path)
        is_link = stat.S_ISLNK(status.st_mode)
        status = os.stat(path) if is_link else status  # noqa: PTH116
    except OSError:
        return Entry(name, path, "broken")
    if is_link and not is_within(os.path.realpath(path), real_root):
        return Entry(name, path, "outside folder" if stat.S_ISDIR(status.st_mode) else "outside file")
    if stat.S_ISDIR(status.st_mode):
        return Entry(name, path, "linked folder" if is_link else "folder")
    if not stat.S_ISREG(status.st_mode):
        return Entry(name, path, "other")
    return Entry(name, path, "file", status_stamp(status))


def _remote_entry(info: pafs.FileInfo, location: str) -> Entry:
    if info.type == pafs.FileType.Directory:
        return Entry(info.base_name, location, "folder")
    return Entry(info.base_name, location, "file", _info_stamp(info))


def is_within(path: str, folder: str) -> bool:
    """Whether a resolved path is a folder or lies in it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


class ConfinedFolder:
    """A folder that paths named in a table start in and must not leave: by `..`, absolute, or through a link."""

    def __init__(self, root: str) -> None:
        self._root = root if is_uri(root) else os.path.normpath(local_path(root))
        self._real = functools.lru_cache(maxsize=4096)(os.path.realpath)  # many rows lie in few folders

    def resolve(self, relative: str) -> tuple[str, str | None]:
        """The path or URI of a file, and why it may not be read (None: it may)."""
        try:
            return self._remote(relative) if is_uri(self._root) else self._local(relative)
        except ValueError:  # NUL, or half a surrogate pair
            return "", f"path {relative!r} is no file name"

    def _local(self, relative: str) -> tuple[str, str | None]:
        path = os.path.normpath(os.path.join(self._root, relative))  # noqa: PTH118
        if not is_within(path, self._root):
            return path, f"path {relative} leads outside the corpus folder {self._root}"
        try:
            is_link = stat.S_ISLNK(os.lstat(path).st_mode)
        except OSError:
            return path, None  # missing: said when it is read
        real = os.path.realpath(path) if is_link else self._real(os.path.dirname(path))  # noqa: PTH120
        return path, None if is_within(real, self._real(self._root)) else "link leads outside the corpus folder"

    def _remote(self, relative: str) -> tuple[str, str | None]:
        leaves = posixpath.normpath(relative).split("/")[0] in ("..", "") or "://" in relative
        fault = f"path {relative} leads outside the corpus folder {self._root}" if leaves else None
        return join(self._root, relative), fault


def open_bytes(location: str) -> IO[bytes]:
    """Open a file for reading with seek; never waits for a pipe. Raises OSError or pyarrow's errors."""
    if is_uri(location):
        filesystem, path = remote(location)
        return cast(IO[bytes], io.BufferedReader(filesystem.open_input_file(path)))
    # O_NONBLOCK: opening a named pipe returns at once instead of waiting for a writer.
    descriptor = os.open(local_path(location), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("not a regular file")
    return os.fdopen(descriptor, "rb")


def read_json(location: str, named: str, **options: Any) -> Any:
    """What a JSON file holds; `options` are those of json.loads. Raises InputError, which begins with `named`."""
    try:
        with open_bytes(location) as file:
            return json.loads(file.read().decode("utf-8-sig"), **options)
    except InputError:  # of an option
        raise
    except (RecursionError, *STORAGE_ERRORS) as error:
        raise InputError(f"{named} is not JSON: {one_line(error)}") from None


def open_parquet(location: str) -> pq.ParquetFile:
    filesystem, path = opened(location)
    if not is_uri(location) and not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116
        raise OSError("not a regular file")
    return pq.ParquetFile(filesystem.open_input_file(path))
