"""What of a corpus is not in its store yet: the listing against the stored rows, by 64-bit keys.

In: the stream of a corpus's rows, and the keys of the rows in the store. Out: parts of rows to embed, as they stream
by. A key changes with everything that decides a stored row, so a changed file is a new row and its old one is stale.
Memory: 16 bytes a row, whatever the rows hold.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from uml_core.corpora.hashes import Hashes, HashSet64, hashes_of
from uml_core.corpora.rows import Row
from uml_core.store.parts import keys_of

ROWS_AT_ONCE = 1024  # rows whose keys are compared together


class Listing:
    """The rows a corpus lists, as keys: gathered while its missing rows are cut into parts."""

    def __init__(self) -> None:
        self._keys = HashSet64()
        self._missing_ids = HashSet64()
        self.num_faults = 0  # missing rows that cannot be used, known without reading them
        self.first_fault: Row | None = None

    @property
    def keys(self) -> Hashes:
        """The keys of all rows that streamed by, sorted."""
        return self._keys.members()

    @property
    def num_missing(self) -> int:
        """Rows that were not stored."""
        return len(self._missing_ids)

    def missing_parts(self, rows: Iterable[Row], stored: Hashes, part_rows: int) -> Iterator[tuple[Row, ...]]:
        """Yield the rows that are not stored, `part_rows` at a time, in their order.

        Args:
            rows: the corpus's listing.
            stored: keys of stored rows, sorted.
            part_rows: rows in a part; the last one may have fewer.
        """
        pending: list[Row] = []
        stream = iter(rows)
        while batch := list(itertools.islice(stream, ROWS_AT_ONCE)):
            keys = keys_of(batch)
            skip = self._keys.add(keys) | contains(stored, keys)
            pending += [row for row, skipped in zip(batch, skip.tolist(), strict=True) if not skipped]
            while len(pending) >= part_rows:
                yield self._cut(pending, part_rows)
        if pending:
            yield self._cut(pending, len(pending))

    def came_again(self, ids: Iterable[str]) -> int:
        """Return how many ids of rows that left the store are among the missing ones: changed, not removed."""
        return int(contains(self._missing_ids.members(), hashes_of(ids)).sum())

    def _cut(self, pending: list[Row], count: int) -> tuple[Row, ...]:
        part = tuple(pending[:count])
        del pending[:count]
        self._missing_ids.add(hashes_of(row.id for row in part))
        faulty = [row for row in part if row.fault is not None]
        self.num_faults += len(faulty)
        self.first_fault = self.first_fault or next(iter(faulty), None)
        return part


def contains(sorted_keys: Hashes, keys: Hashes) -> npt.NDArray[np.bool_]:
    """Return for each of N keys (N,) whether it is in a sorted array."""
    if not len(sorted_keys):
        return np.zeros(len(keys), dtype=np.bool_)
    places = np.searchsorted(sorted_keys, keys)
    places[places == len(sorted_keys)] = 0  # past the end: compared with the smallest, which is smaller
    found: npt.NDArray[np.bool_] = sorted_keys[places] == keys
    return found


def digest_of(keys: Hashes) -> str:
    """Return a short text over a set of distinct keys, whatever their order: equal for equal sets."""
    total, mixed = np.add.reduce(keys, dtype=np.uint64), np.bitwise_xor.reduce(keys)
    return f"{len(keys)}-{int(total):016x}{int(mixed):016x}"
