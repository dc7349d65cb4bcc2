"""From a corpus of the experiment file to a stream of rows: the reader of its format, and the checks all formats share.

In: a corpus. Out: rows in a fixed order, ids unique among the rows without a fault. Memory does not grow with the
corpus, but for 8 bytes a row that know repeated ids.

    for row in stream_rows("photos", experiment.corpora["photos"]): ...
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from uml_core.config import CorpusConfig, Experiment
from uml_core.corpora.hashes import HashSet64, hashes_of
from uml_core.corpora.readers.base import CorpusSource, Reader
from uml_core.corpora.readers.folder import read_folder
from uml_core.corpora.readers.sentences import read_descriptors, read_templates
from uml_core.corpora.readers.table import read_table
from uml_core.corpora.readers.webdataset import read_webdataset
from uml_core.corpora.rows import Row, escaped, is_storable
from uml_core.errors import InputError

ROWS_AT_ONCE = 1024  # rows whose ids are checked together

READERS: Mapping[str, Reader] = {
    "folder": read_folder,
    "table": read_table,
    "descriptors": read_descriptors,
    "templates": read_templates,
    "webdataset": read_webdataset,
}


def stream_rows(
    name: str, corpus: CorpusConfig, *, classes: Callable[[], Sequence[str]] | None = None
) -> Iterator[Row]:
    """Yield the rows of a corpus in a fixed order, without reading their content.

    A row that cannot be used is yielded as well, with the reason as its `fault`.

    Args:
        name: the corpus's name, for messages.
        corpus: its settings.
        classes: returns the target's classes; format templates asks for them.

    Raises:
        InputError: while iterating; the path is missing, empty or not of the stated format.
    """
    found = False
    for row in checked(READERS[corpus.format](CorpusSource(name, corpus, classes))):
        found = True
        yield row
    if not found:
        raise InputError(f"corpora.{name} is empty: no rows found in {corpus.path} (format {corpus.format})")


def rows_of(experiment: Experiment, corpus: str) -> Iterator[Row]:
    """Yield the rows of a corpus of an experiment; templates are filled with the target's classes."""

    def target_classes() -> list[str]:
        rows = stream_rows(experiment.target, experiment.corpora[experiment.target])
        return sorted({row.label for row in rows if row.label is not None and row.split == "train"})

    return stream_rows(corpus, experiment.corpora[corpus], classes=target_classes)


def list_rows(name: str, corpus: CorpusConfig, *, classes: Callable[[], Sequence[str]] | None = None) -> list[Row]:
    """Return the rows of a small corpus as a list. Raises what `stream_rows` raises."""
    return list(stream_rows(name, corpus, classes=classes))


def checked(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield the rows, with a fault on each that repeats an id or cannot be stored as UTF-8."""
    checks = RowChecks()
    stream = iter(rows)
    while batch := list(itertools.islice(stream, ROWS_AT_ONCE)):
        yield from checks.of(batch)


class RowChecks:
    """The checks all rows of a corpus go through, a batch at a time; it remembers 8 bytes of every id."""

    def __init__(self) -> None:
        self._ids = HashSet64()
        self._checked = 0

    def of(self, batch: Iterable[Row]) -> list[Row]:
        """Return the rows, with a fault on each that repeats an earlier id or cannot be stored as UTF-8."""
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
    if is_storable(row.id, row.label, row.split, row.text, row.fault):
        return row
    wrong = next(name for name in ("id", "label", "split", "text", "fault") if not is_storable(getattr(row, name)))
    return replace(
        row,
        id=escaped(row.id),
        label=None if row.label is None else escaped(row.label),
        split=escaped(row.split),
        text=None,
        fault=escaped(row.fault or f"{wrong} is not valid Unicode (UTF-8)"),
    )
