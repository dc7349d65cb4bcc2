"""One raw row of a corpus: what is stored of it, where its content lies, its 128-bit key, and the names of splits.

A row is listed on the driver and read on a worker. It carries a sentence, or points at bytes: a whole file, a range of
bytes in a tar shard, or one cell of a Parquet file. A row that cannot be used carries the reason instead.

Keys and ids are compared as 128-bit hashes: 10⁸ ids are checked for repeats in 1.6 GB instead of the 10 GB of a set of
strings. Two of n different ones share a hash with probability n² / 2¹²⁹: 10⁻²¹ for 10⁹ rows.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from uml_core.corpora.content import ByteRange, Cell, Member, Raw, read_content
from uml_core.errors import RowError

MAX_LETTERS = 2**24  # of a sentence, as of a field in CSV; encoders cut it to their own length
SPLIT_ALIASES = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "testing": "test"}


# Bytes, which numpy sorts, searches and makes unique in its own loops, as it does not with pairs of numbers.
HASH = np.dtype("S16")
Hashes = npt.NDArray[np.bytes_]


@dataclass(frozen=True, slots=True)
class Row:
    """One row before it is read: a sentence, or where its bytes lie with a stamp (size and time) of that file."""

    id: str
    label: str | None
    split: str
    text: str | None = None
    path: str | None = None  # local path or URI
    member: Member | None = None  # the part of the file; None: all of it
    stamp: str = ""
    fault: str | None = None  # why the row cannot be used, known from listing
    is_text: bool = False  # the file's bytes are a sentence in UTF-8

    @property
    def key(self) -> bytes:
        """128 bits over everything that decides the stored row; another content has another stamp, so another key.

        The first 64 are the whole key of stores by earlier versions (`first_halves`).
        """
        member = None if self.member is None else tuple(self.member)
        text = _written(self.id, self.label, self.split, self.text, self.path, member, self.stamp, self.fault)
        return b"".join(hashlib.blake2b(text, digest_size=8, person=half).digest() for half in (b"", b"second"))

    def as_json(self) -> list[object]:
        head = [self.id, self.label, self.split, self.text, self.path, self.member]
        return [*head, self.stamp, self.fault, self.is_text]

    @classmethod
    def from_json(cls, values: list[Any]) -> Row:
        member = values[5]
        if member is not None:
            values[5] = Cell(*member) if len(member) == 3 else ByteRange(*member)
        return cls(*values)

    def read(self) -> Raw:
        """The sentence or the file's bytes. Raises RowError when there is nothing that can be read."""
        if self.fault is not None:
            raise RowError(self.fault)
        if self.path is None:
            return _sentence(self.text or "")
        content = read_content(self.path, self.member, self.stamp)
        return _sentence(_decoded(content)) if self.is_text else content


@functools.lru_cache(maxsize=1024)
def canonical_split(name: str) -> str:
    """Train, val or test for the usual spellings; any other name is an extra (shifted) test split."""
    lowered = name.strip().lower()
    return SPLIT_ALIASES.get(lowered, lowered)


def escaped(text: str) -> str:
    """A text as it can be written in UTF-8: half a surrogate pair, from a file name or JSON, cannot."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def _sentence(text: str) -> str:
    if not text.strip():
        raise RowError("empty text")
    if len(text) > MAX_LETTERS:
        raise RowError(f"text of {len(text)} letters; at most {MAX_LETTERS} are read")
    return text


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RowError(f"not UTF-8 text (byte {error.start})") from None


def hash64(*values: object) -> int:
    """64 bits of BLAKE2b over strings, numbers, None and tuples of them; the same on every machine."""
    return int.from_bytes(hashlib.blake2b(_written(*values), digest_size=8).digest(), "little")


def _written(*values: object) -> bytes:
    return ascii(values).encode("ascii")  # unambiguous, and ASCII for half a surrogate pair as well


def hashes_of(values: Iterable[str]) -> Hashes:
    """128 bits of each of N texts (N,)."""
    return np.fromiter((hashlib.blake2b(_written(value), digest_size=HASH.itemsize).digest() for value in values), HASH)


def first_halves(hashes: Hashes) -> Hashes:
    """N hashes (N,) with zeros as their second halves: so the keys in stores by earlier versions are read."""
    return hashes.astype("S8").astype(HASH)


def contains(sorted_hashes: Hashes, hashes: Hashes) -> npt.NDArray[np.bool_]:
    """For each of N hashes (N,), whether it is in a sorted array."""
    if not len(sorted_hashes):
        return np.zeros(len(hashes), dtype=np.bool_)
    places = np.searchsorted(sorted_hashes, hashes)
    places[places == len(sorted_hashes)] = 0  # past the end: compared with the smallest, which is smaller
    found: npt.NDArray[np.bool_] = sorted_hashes[places] == hashes
    return found


class HashSet:
    """A growing set of 128-bit hashes: sorted arrays, each at least twice as long as the next.

    Adding costs a binary search in each of about log2(n) arrays; arrays of like length are merged, so a member is
    moved about log2(n) times in all. Memory is 16 bytes a member, and as much again while the largest two merge.
    """

    def __init__(self) -> None:
        self._runs: list[Hashes] = []  # longest first, each sorted and without repetition, none shared

    def __len__(self) -> int:
        return sum(len(run) for run in self._runs)

    def members(self) -> Hashes:
        """All members (N,), sorted."""
        return np.sort(np.concatenate([np.empty(0, dtype=HASH), *self._runs]))

    def add(self, batch: Hashes) -> npt.NDArray[np.bool_]:
        """Add a batch (N,); returns which of them (N,) were there before, in the set or earlier in the batch."""
        distinct, first = np.unique(batch, return_index=True)
        known = np.zeros(len(distinct), dtype=np.bool_)
        for run in self._runs:
            known |= contains(run, distinct)
        seen = np.ones(len(batch), dtype=np.bool_)
        seen[first[~known]] = False
        self._append(distinct[~known])
        return seen

    def _append(self, run: Hashes) -> None:
        while self._runs and len(self._runs[-1]) < 2 * len(run):
            run = np.sort(np.concatenate([self._runs.pop(), run]), kind="stable")
        if len(run):
            self._runs.append(run)
