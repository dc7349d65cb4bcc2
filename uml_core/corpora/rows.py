"""One raw row of a corpus: what is stored of it, where its content lies, and the names splits go by.

A row is listed on the driver and read on a worker. It carries a sentence, or points at bytes: a whole file, a range of
bytes in a tar shard, or one cell of a Parquet file. A row that cannot be used carries the reason instead.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from uml_core.corpora.content import Member, Raw, read_content
from uml_core.corpora.hashes import hash64
from uml_core.errors import RowError

SPLIT_ALIASES = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "testing": "test"}


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
    def key(self) -> int:
        """64 bits over everything that decides the stored row; another content has another stamp and so another key."""
        member = None if self.member is None else self.member.parts
        return hash64(self.id, self.label, self.split, self.text, self.path, member, self.stamp, self.fault)

    def read(self) -> Raw:
        """Return the sentence or the file's bytes. Raises RowError when there is nothing that can be read."""
        if self.fault is not None:
            raise RowError(self.fault)
        if self.path is None:
            return _sentence(self.text or "")
        content = read_content(self.path, self.member, self.stamp)
        return _sentence(_decoded(content)) if self.is_text else content


@functools.lru_cache(maxsize=1024)
def canonical_split(name: str) -> str:
    """Return train, val or test for the usual spellings; any other name is an extra (shifted) test split."""
    lowered = name.strip().lower()
    return SPLIT_ALIASES.get(lowered, lowered)


def is_storable(*texts: str | None) -> bool:
    """Return whether texts can be written as UTF-8: half a surrogate pair, from a file name or JSON, cannot."""
    return all(text is None or text.isascii() or _encodable(text) for text in texts)


def escaped(text: str) -> str:
    """Return a text with what is not valid Unicode written as an escape."""
    return text if is_storable(text) else text.encode("utf-8", "backslashreplace").decode("utf-8")


def _sentence(text: str) -> str:
    if not text.strip():
        raise RowError("empty text")
    return text


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RowError(f"not UTF-8 text (byte {error.start})") from None


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
