"""What readers share: the corpus they read, file endings, a record's id, label and split, and the checks of rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any

from uml_core.config import CorpusConfig
from uml_core.corpora.rows import Hashes, HashSet, Row, canonical_split, escaped, hash64, hashes_of
from uml_core.errors import InputError
from uml_core.files.paths import kind_of

ROWS_AT_ONCE = 1024  # rows whose ids are checked together
ENDINGS: Mapping[str, str] = {
    "image": ".png .jpg .jpeg .webp .avif .bmp .gif .tif .tiff .ppm .heic .heif",
    "audio": ".wav .flac .ogg .mp3 .oga .opus .aiff .m4a .aac",
    "text": ".txt .md",
}
# Of those, the ones that are read where an extra package is installed.
PACKAGES: Mapping[str, str] = {".heic": "pillow-heif", ".heif": "pillow-heif", ".m4a": "av", ".aac": "av"}


def is_installed(package: str) -> bool:
    """Whether a package can be imported; a mere folder of its name in the working directory has no origin."""
    spec = find_spec(package.replace("-", "_"))
    return spec is not None and spec.origin is not None


SUFFIXES: Mapping[str, frozenset[str]] = {
    modality: frozenset(
        ending for ending in endings.split() if ending not in PACKAGES or is_installed(PACKAGES[ending])
    )
    for modality, endings in ENDINGS.items()
}


@dataclass(frozen=True)
class Slice:
    """Which pieces of a corpus are listed: those whose hash, divided by `count`, leaves `index`."""

    index: int
    count: int
    in_groups: frozenset[str] = frozenset()  # Parquet files whose row groups are pieces, alike in all slices


@dataclass(frozen=True)
class CorpusSource:
    """A corpus to list: its name and settings, and the target's classes (asked for by templates alone).

    With `ids_from_paths` a table's rows without an id are named by their path. Of a `slice` only the pieces that it
    takes are listed.
    """

    name: str
    corpus: CorpusConfig
    classes: Callable[[], Sequence[str]] | None = None
    ids_from_paths: bool = False
    slice: Slice | None = None

    def takes(self, piece: str) -> bool:
        """Whether a piece (a shard, a table, a class folder) is to be listed."""
        return self.slice is None or hash64(piece) % self.slice.count == self.slice.index

    @property
    def setting(self) -> str:
        """The setting that messages name."""
        return f"corpora.{self.name}.path"

    @property
    def location(self) -> str:
        assert self.corpus.path is not None, "only format templates has no path, and it asks for none"
        return self.corpus.path

    def kind(self) -> str:
        """Whether it is a file or a folder. Raises InputError where there is neither."""
        kind = kind_of(self.location, self.setting)
        if kind == "missing":
            raise InputError(f"{self.setting} is {self.location}, which does not exist; give the path of the corpus")
        return kind


Reader = Callable[[CorpusSource], Iterator[Row]]


@dataclass
class RecordNames:
    """Turns records into ids, labels and splits, and holds labels to the type of the first one.

    A row without an id is named by `prefix` and its path, if that is asked for and no row before it has it, else by
    `prefix` and its position.
    """

    default_split: str
    prefix: str = ""
    label_names: Sequence[str] = ()  # names of integer labels, where the file holds them
    by_path: bool = False
    _label_type: type | None = field(default=None, init=False)
    _paths: HashSet = field(default_factory=HashSet, init=False)

    def row(self, index: int, record: Mapping[str, Any], fault: str | None = None) -> Row:
        """A row without content; with a fault where the record has one, or names the row wrongly."""
        row_id, id_fault = scalar("id", record.get("id"))
        label, label_fault = self._label(record.get("label"))
        split, split_fault = scalar("split", record.get("split"))
        return Row(
            row_id or self._path_id(record) or f"{self.prefix}row-{index}",
            label,
            canonical_split(split or self.default_split),
            fault=fault or id_fault or label_fault or split_fault,
        )

    def _path_id(self, record: Mapping[str, Any]) -> str | None:
        path = scalar("path", record.get("path"))[0] if self.by_path else None
        named = f"{self.prefix}{path}"
        return None if path is None or self._paths.add(hashes_of([named]))[0] else named

    def _label(self, value: object) -> tuple[str | None, str | None]:
        label, fault = scalar("label", value)
        if isinstance(value, list):
            fault = "label is a list; a row has one class: write the row once for each, or keep the one that counts"
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
    """A cell as text (None where it is empty), and why it is refused, if it is."""
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


def checked(rows: Iterable[Row], checks: RowChecks | None = None) -> Iterator[Row]:
    """Yield the rows, with a fault on each that repeats an id or cannot be stored as UTF-8."""
    checks = checks or RowChecks()
    stream = iter(rows)
    while batch := list(itertools.islice(stream, ROWS_AT_ONCE)):
        yield from checks.apply(batch)


class RowChecks:
    """The checks all rows of a corpus go through, a batch at a time; it remembers 16 bytes of every id."""

    def __init__(self) -> None:
        self._ids = HashSet()
        self._checked = 0

    @property
    def ids(self) -> Hashes:
        """The ids of all rows without a fault, sorted."""
        return self._ids.members()

    def apply(self, batch: Iterable[Row]) -> list[Row]:
        rows = [_storable(row) for row in batch]
        usable = [index for index, row in enumerate(rows) if row.fault is None]
        repeated = self._ids.add(hashes_of(rows[index].id for index in usable))
        for index, again in zip(usable, repeated.tolist(), strict=True):
            if again:
                # With its position: the third row of an id is another row than the second.
                fault = f"id '{rows[index].id}' occurs again (row {self._checked + index})"
                rows[index] = replace(rows[index], fault=fault)
        self._checked += len(rows)
        return rows


def _storable(row: Row) -> Row:
    texts = {"id": row.id, "label": row.label, "split": row.split, "text": row.text, "fault": row.fault}
    if all(text is None or text.isascii() for text in texts.values()):
        return row
    storable: dict[str, Any] = {name: None if text is None else escaped(text) for name, text in texts.items()}
    wrong = next((name for name, text in texts.items() if storable[name] != text), None)
    if wrong is None:
        return row
    fault = storable["fault"] or f"{wrong} is not valid Unicode (UTF-8)"
    return replace(row, **{**storable, "text": None, "fault": fault})
