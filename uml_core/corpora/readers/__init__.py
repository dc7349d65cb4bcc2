"""Readers: one function a `format`, from a path to a stream of rows that are not read yet, and the checks all share.

In: a corpus. Out: rows in a fixed order, ids unique among the rows without a fault. Memory does not grow with the
corpus, but for 16 bytes a row that know repeated ids.

    for row in stream_rows("photos", experiment.corpora["photos"]): ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain

from uml_core.config import CorpusConfig, Experiment
from uml_core.config.corpora import READY_FORMATS
from uml_core.corpora.readers.base import SUFFIXES, CorpusSource, Reader, RowChecks, Slice, checked
from uml_core.corpora.readers.folder import read_folder
from uml_core.corpora.readers.sentences import read_descriptors, read_templates
from uml_core.corpora.readers.table import read_table
from uml_core.corpora.readers.webdataset import read_webdataset
from uml_core.corpora.rows import Row
from uml_core.errors import InputError

__all__ = ["SUFFIXES", "rows_of", "stream_rows"]

READERS: Mapping[str, Reader] = {
    "folder": read_folder,
    "table": read_table,
    "descriptors": read_descriptors,
    "templates": read_templates,
    "webdataset": read_webdataset,
}


def stream_rows(
    name: str,
    corpus: CorpusConfig,
    *,
    classes: Callable[[], Sequence[str]] | None = None,
    ids_from_paths: bool = False,
    slice_of: Slice | None = None,
    checks: RowChecks | None = None,
) -> Iterator[Row]:
    """Yield the rows of a corpus in a fixed order, without reading their content.

    A row that cannot be used is yielded as well, with the reason as its `fault`.

    Args:
        name: the corpus's name, for messages.
        corpus: its settings.
        classes: returns the target's classes; format templates asks for them.
        ids_from_paths: whether rows of a table that have a path and no id are named by their path.
        slice_of: of many slices the one to list; it may be empty.
        checks: remembers the ids.

    Raises:
        InputError: while iterating; the path is missing, empty or not of the stated format.
    """
    found = False
    for row in checked(READERS[corpus.format](CorpusSource(name, corpus, classes, ids_from_paths, slice_of)), checks):
        found = True
        yield row
    if not found and slice_of is None:
        raise InputError(f"corpora.{name} is empty: no rows found in {corpus.path} (format {corpus.format})")


def rows_of(
    experiment: Experiment, corpus: str, slice_of: Slice | None = None, checks: RowChecks | None = None
) -> Iterator[Row]:
    """Yield the rows of a corpus of an experiment; templates are filled with the target's classes, or the bridges'."""
    described = experiment.bridges if corpus in experiment.bridge_texts else (experiment.target,)

    def classes() -> list[str]:
        rows = chain.from_iterable(_labelled(name, experiment.corpora[name]) for name in described)
        return sorted({row.label for row in rows if row.label is not None and row.split == "train"})

    return stream_rows(corpus, experiment.corpora[corpus], classes=classes, slice_of=slice_of, checks=checks)


def _labelled(name: str, corpus: CorpusConfig) -> Iterator[Row]:
    """The rows of a corpus, raw or ready."""
    if corpus.format not in READY_FORMATS:
        return stream_rows(name, corpus)
    from uml_core.corpora.ready.adopt import stream_ready  # which imports this package

    return chain.from_iterable(chunk.rows for chunk in stream_ready(name, corpus))
