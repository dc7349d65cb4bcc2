"""What readers have in common: the corpus they read, known file endings, and a record's id, label and split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from uml_core.config import CorpusConfig
from uml_core.corpora.rows import Row, canonical_split
from uml_core.errors import InputError
from uml_core.files.places import kind_of

SUFFIXES: Mapping[str, frozenset[str]] = {
    "image": frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")),
    "audio": frozenset((".wav", ".flac", ".ogg", ".mp3", ".oga", ".opus", ".aiff")),
    "text": frozenset((".txt", ".md")),
}


@dataclass(frozen=True)
class CorpusSource:
    """A corpus to list: its name and settings, and the target's classes (asked for by templates alone)."""

    name: str
    corpus: CorpusConfig
    classes: Callable[[], Sequence[str]] | None = None

    @property
    def setting(self) -> str:
        """The setting that messages name."""
        return f"corpora.{self.name}.path"

    @property
    def place(self) -> str:
        """The path or URI."""
        assert self.corpus.path is not None, "only format templates has no path, and it asks for none"
        return self.corpus.path

    def kind(self) -> str:
        """Return file or folder. Raises InputError where there is neither."""
        kind = kind_of(self.place, self.setting)
        if kind == "missing":
            raise InputError(f"{self.setting} is {self.place}, which does not exist; give the path of the corpus")
        return kind


Reader = Callable[[CorpusSource], Iterator[Row]]


@dataclass(frozen=True, slots=True)
class Named:
    """What a record says about its row besides the content; `fault` where it says it wrongly."""

    id: str
    label: str | None
    split: str
    fault: str | None = None


@dataclass
class RecordNames:
    """Turns records into ids, labels and splits, and holds labels to the type of the first one.

    A row without an id is named by its position, from `prefix` and the count of rows so far.
    """

    default_split: str
    prefix: str = ""
    label_names: Sequence[str] = ()  # names of integer labels, where the file holds them
    _label_type: type | None = field(default=None, init=False)

    def of(self, index: int, record: Mapping[str, Any]) -> Named:
        """Return the names of the record at a position."""
        row_id, id_fault = scalar("id", record.get("id"))
        label, label_fault = self._label(record.get("label"))
        split, split_fault = scalar("split", record.get("split"))
        return Named(
            id=row_id or self.positional(index),
            label=label,
            split=self.split_of(split),
            fault=id_fault or label_fault or split_fault,
        )

    def split_of(self, name: str | None) -> str:
        """Return the split a name stands for; None is the default."""
        return canonical_split(name or self.default_split)

    def positional(self, index: int) -> str:
        """Return the id of a row that names none."""
        return f"{self.prefix}row-{index}"

    def faulty(self, index: int, fault: str) -> Row:
        """Return the row that stands for a record that cannot be read at all."""
        return Row(self.positional(index), None, self.split_of(None), fault=fault)

    def _label(self, value: object) -> tuple[str | None, str | None]:
        label, fault = scalar("label", value)
        if label is None:
            return None, fault
        if self._label_type is None:
            self._label_type = type(value)
        if type(value) is not self._label_type:
            here, before = (_TYPE_NAMES[kind] for kind in (type(value), self._label_type))
            return label, f"label {value!r} is {here[0]}, labels before it are {before[1]}: labels of mixed types"
        if self.label_names and isinstance(value, int):
            known = 0 <= value < len(self.label_names)
            return (self.label_names[value], None) if known else (label, f"label {value} has no name in the file")
        return label, None


_TYPE_NAMES = {
    str: ("a string", "strings"),
    int: ("an int", "ints"),
    float: ("a float", "floats"),
    bool: ("a bool", "bools"),
    bytes: ("bytes", "bytes"),
}


def scalar(column: str, value: object) -> tuple[str | None, str | None]:
    """Return a cell as text (None where it is empty) and why it is refused, if it is."""
    if type(value) is str:
        return value or None, None
    if value is None:
        return None, None
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8"), None
        except UnicodeDecodeError:
            return None, f"{column} is not valid UTF-8"
    if type(value) not in _TYPE_NAMES:
        return None, f"{column} is a {type(value).__name__}; expected a string or a number"
    return str(value), None
