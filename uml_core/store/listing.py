"""What of a corpus is not in its store yet: the listing against the stored rows, by 128-bit keys.

In: the stream of a corpus's rows, and the keys of the rows in the store. Out: parts of rows to embed, as they stream
by, which `RowSpool` keeps for the workers. A key changes with everything that decides a stored row, so a changed file
is a new row and its old one is stale. Memory: 16 bytes a row, and as many a missing row, whatever the rows hold.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.fs as pafs

from uml_core.corpora.rows import Hashes, HashSet, Row, contains, first_halves, hashes_of
from uml_core.files.outages import named
from uml_core.store.parts import keys_of

ROWS_AT_ONCE = 1024  # rows whose keys are compared together
GROWTH = 8  # a part that grows holds so many times fewer rows than all before it


class Listing:
    """A corpus that is listed while it is iterated: `missing` yields what is not stored, and the keys of all are kept.

    Args:
        rows: the corpus's rows.
        stored: keys of stored rows, sorted.
        part_rows: rows in a part of missing ones; the last one may have fewer.
        first_rows: rows in the first parts; later ones grow with what went before, up to `part_rows`.
    """

    def __init__(self, rows: Iterable[Row], stored: Hashes, part_rows: int, *, first_rows: int | None = None) -> None:
        self._keys, self._missing_ids = HashSet(), HashSet()
        self.num_faults = 0  # missing rows that cannot be used, known without reading them
        self.first_fault: Row | None = None
        self.has_files = False  # whether a row's content is a whole file
        self.missing: Iterator[Sequence[Row]] = self._compare(iter(rows), stored, part_rows, first_rows or part_rows)

    @property
    def keys(self) -> Hashes:
        """The keys of all rows that streamed by, sorted."""
        return self._keys.members()

    @property
    def missing_ids(self) -> Hashes:
        """The hashes of the ids of missing rows that streamed by, sorted."""
        return self._missing_ids.members()

    @property
    def num_missing(self) -> int:
        """Rows that streamed by and were not stored."""
        return len(self._missing_ids)

    def misses(self, more_than: int = 0) -> bool:
        """Whether more rows than so many are not stored; lists as far as it takes to tell."""
        first = list[Sequence[Row]]()
        for part in self.missing:
            first.append(part)
            if self.num_missing > more_than:
                break
        self.missing = itertools.chain(first, self.missing)
        return self.num_missing > more_than

    def came_again(self, ids: Iterable[str]) -> int:
        """How many ids of rows that left the store are among the missing ones: changed, not removed."""
        return int(contains(self._missing_ids.members(), hashes_of(ids)).sum())

    def _compare(self, rows: Iterator[Row], stored: Hashes, part_rows: int, first_rows: int) -> Iterator[Sequence[Row]]:
        pending: list[Row] = []
        earlier = stored[stored == first_halves(stored)]  # keys by an earlier version: they stand for those of now

        def size() -> int:
            return min(part_rows, max(first_rows, len(self._missing_ids) // GROWTH))

        while batch := list(itertools.islice(rows, ROWS_AT_ONCE)):
            keys = keys_of(batch)
            self.has_files |= any(row.path is not None and row.member is None and row.fault is None for row in batch)
            if len(earlier):
                keys = np.where(contains(earlier, first_halves(keys)), first_halves(keys), keys)
            skip = self._keys.add(keys) | contains(stored, keys)
            pending += [row for row, skipped in zip(batch, skip.tolist(), strict=True) if not skipped]
            while len(pending) >= size():
                yield self._cut(pending, size())
        if pending:
            yield self._cut(pending, len(pending))

    def _cut(self, pending: list[Row], count: int) -> Sequence[Row]:
        part = pending[:count]
        del pending[:count]
        self._missing_ids.add(hashes_of(row.id for row in part))
        faulty = [row for row in part if row.fault is not None]
        self.num_faults += len(faulty)
        self.first_fault = self.first_fault or next(iter(faulty), None)
        return part


@dataclass(frozen=True)
class RowSpool:
    """Rows on their way to the workers: a folder beside the store's parts, with one file of JSON lines a part.

    They stay out of the driver's memory and of the object store, so that a corpus of any size can be planned. JSON,
    since unpickling would run the code of whoever may write into the bucket.
    """

    filesystem: pafs.FileSystem
    directory: str

    def write(self, parts: Iterable[Sequence[Row]]) -> list[str]:
        """Write the rows of every part; returns the name of each."""
        names: list[str] = []
        for rows in parts:
            if not names:
                self.filesystem.create_dir(self.directory, recursive=True)
            names.append(f"{len(names):08d}")
            path = f"{self.directory}/{names[-1]}"
            with named(path), self.filesystem.open_output_stream(path) as stream:
                stream.write("\n".join(json.dumps(row.as_json()) for row in rows).encode())
        return names

    def read(self, name: str) -> list[Row]:
        with self.filesystem.open_input_stream(f"{self.directory}/{name}") as stream:
            return [Row.from_json(json.loads(line)) for line in stream.read().splitlines()]


def digest_of(keys: Hashes) -> str:
    """A short text over a set of distinct keys, whatever their order: equal for equal sets."""
    halves = np.frombuffer(keys.tobytes(), dtype=np.uint64).reshape(-1, 2)
    total, mixed = np.add.reduce(halves), np.bitwise_xor.reduce(halves)
    first, second = (f"{int(total[half]):016x}{int(mixed[half]):016x}" for half in (0, 1))
    return f"{len(keys)}-{first}" + (f"-{second}" if halves[:, 1].any() else "")  # without: as by earlier versions
