"""One raw row of a corpus, and the names splits go by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from uml_core.encoders.base import Raw, RowError

SPLIT_ALIASES = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "testing": "test"}


@dataclass(frozen=True)
class Row:
    """One row before it is read: a sentence, or the path of a file with a stamp (size and time) of its content."""

    id: str
    label: str | None
    split: str
    text: str | None = None
    path: str | None = None
    stamp: str = ""

    def read(self) -> Raw:
        """Return the sentence or the file's bytes. Raises RowError when there is nothing to read."""
        if self.path is None:
            if self.text is None or not self.text.strip():
                raise RowError("empty text")
            return self.text
        try:
            content = Path(self.path).read_bytes()
        except OSError as error:
            raise RowError(f"cannot be opened: {error.strerror or error}") from None
        if not content:
            raise RowError("empty file (0 bytes)")
        return content


def canonical_split(name: str) -> str:
    """Return train, val or test for the usual spellings; any other name is an extra (shifted) test split."""
    lowered = name.strip().lower()
    return SPLIT_ALIASES.get(lowered, lowered)
