"""Rows on their way to the workers: one small file a part, on the store's own filesystem.

They stay out of the driver's memory and out of the object store, so that a corpus of any size can be planned.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow.fs as pafs

from uml_core.corpora.rows import Row


@dataclass(frozen=True)
class RowSpool:
    """A folder of pickled parts."""

    filesystem: pafs.FileSystem
    directory: str

    def write(self, parts: Iterator[Sequence[Row]]) -> list[str]:
        """Write the rows of every part; returns the name of each."""
        names = []
        for index, rows in enumerate(parts):
            if not index:
                self.filesystem.create_dir(self.directory, recursive=True)
            names.append(f"{index:08d}")
            with self.filesystem.open_output_stream(f"{self.directory}/{names[-1]}") as stream:
                stream.write(pickle.dumps(list(rows), protocol=pickle.HIGHEST_PROTOCOL))
        return names

    def read(self, name: str) -> list[Row]:
        """Return the rows of one part."""
        with self.filesystem.open_input_stream(f"{self.directory}/{name}") as stream:
            rows: list[Row] = pickle.loads(stream.read())
        return rows
