"""Whole files: written in one rename, read if they are there. On any pyarrow filesystem.

A file that can be seen is complete: who is killed while writing leaves a temporary file and the file as it was before.
"""

from __future__ import annotations

import contextlib
import posixpath
import uuid

import pyarrow as pa
import pyarrow.fs as pafs

from uml_core.files.outages import named

LOCAL = pafs.LocalFileSystem()
TEMPORARY = ".tmp-"  # hidden, so that a corpus folder or a Parquet data set does not list what a killed writer left


def write_whole(filesystem: pafs.FileSystem, path: str, content: bytes | pa.Buffer) -> None:
    """Write a file, in place of one that is there; its folder is made if need be."""
    folder = posixpath.dirname(path) or "."
    filesystem.create_dir(folder, recursive=True)
    temporary = f"{folder}/{TEMPORARY}{uuid.uuid4().hex}"
    try:
        with named(path), filesystem.open_output_stream(temporary) as stream:
            stream.write(content)
    except OSError:
        with contextlib.suppress(OSError):
            filesystem.delete_file(temporary)  # whose room others may need
        raise
    filesystem.move(temporary, path)


def read_if_there(filesystem: pafs.FileSystem, path: str) -> bytes | None:
    """A file's content, None where there is no file; not asked for first, since it may go in between."""
    try:
        with filesystem.open_input_stream(path) as stream:
            content: bytes = stream.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return content
