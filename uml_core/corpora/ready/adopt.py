"""Ready embeddings and token sequences: files the user computed, validated and adopted into the store as they are.

In: a corpus of format embeddings, tokens (`uml_core.corpora.ready.files`) or multibench; a file, a folder or a pattern
of files. Out: `ReadyRows` in chunks; rows without values, with NaN or infinity, of another width or with a repeated id
are set apart with their reason.

Shape legend: N rows, T tokens of a row, D width of an embedding or token.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from uml_core.config import CorpusConfig
from uml_core.corpora.readers.base import CorpusSource, RecordNames, RowChecks
from uml_core.corpora.ready.files import Values, column_of, content_of, read_ready, ready_files
from uml_core.corpora.ready.multibench import read_multibench
from uml_core.corpora.rows import Row
from uml_core.errors import InputError
from uml_core.files.patterns import relative_names

CHUNK_ROWS = {"embedding": 8192, "tokens": 1024}
MAX_TOKEN = 2**24  # whole numbers below it are exact in float32

Candidate = tuple[Row, Values, bool]  # a row, its values, and whether those are discrete
Kind = tuple[int, bool]  # D, and whether tokens are discrete


@dataclass(frozen=True)
class ReadyRows:
    """Adopted rows with an embedding (D,) or tokens (T, D) each, and the rows that cannot be used.

    `vocabulary` is above every discrete token so far, None for vectors.
    """

    rows: tuple[Row, ...]
    values: tuple[Values, ...]
    rejected: tuple[Row, ...]  # each with its fault
    dim: int
    vocabulary: int | None

    @property
    def embeddings(self) -> Values:
        """The embeddings of all rows (N, D)."""
        return np.array(self.values, dtype=np.float32).reshape(-1, self.dim)


def ready_identity(name: str, corpus: CorpusConfig) -> dict[str, object]:
    """What names the store folder of ready data: how it is read, and its content."""
    fields = () if corpus.format == "embeddings" else ("dataset", "field")
    reading = {"source": corpus.format, **{field: getattr(corpus, field) for field in fields}}
    return {**reading, **content_of(CorpusSource(name, corpus))}


def stream_ready(name: str, corpus: CorpusConfig, *, chunk_rows: int | None = None) -> Iterator[ReadyRows]:
    """Yield validated rows with their values, some thousand at a time.

    All have one width D, the commonest of the first chunk that has any.

    Raises:
        InputError: while iterating; no file, a file that holds nothing of the format, or no usable row.
    """
    source = CorpusSource(name, corpus)
    what = column_of(source)
    candidates = read_multibench(source) if corpus.format == "multibench" else _own(source)
    checks, kind, vocabulary, first_reason = RowChecks(), None, 0, "it is empty"
    waiting: tuple[Row, ...] = ()  # rejected before the width was known
    found = False
    while chunk := list(itertools.islice(candidates, chunk_rows or CHUNK_ROWS[what])):
        kind = kind or _commonest_kind(chunk)
        rows = checks.apply(_validated(*each, kind, what) for each in chunk)
        kept = [(row, values) for row, (_, values, _) in zip(rows, chunk, strict=True) if row.fault is None]
        rejected = tuple(row for row in rows if row.fault is not None)
        first_reason = rejected[0].fault or "" if rejected else first_reason
        waiting += rejected
        if kind is None:
            continue
        found = found or bool(kept)
        dim, is_discrete = kind
        if is_discrete:
            vocabulary = max([vocabulary, *(int(values.max()) + 1 for _, values in kept)])
        yield ReadyRows(
            tuple(row for row, _ in kept),
            tuple(values for _, values in kept),
            waiting,
            dim,
            vocabulary if is_discrete else None,
        )
        waiting = ()
    if not found:
        raise InputError(f"{source.setting} {source.location} has no usable {what}: {first_reason}")


def _own(source: CorpusSource) -> Iterator[Candidate]:
    files, names = ready_files(source), RecordNames(source.corpus.split)
    for file, relative in zip(files, relative_names(files), strict=True):
        names.prefix = f"{relative}/" if len(files) > 1 else ""
        for index, (record, values, is_discrete) in enumerate(read_ready(source, file)):
            yield names.row(index, record.values, record.fault), values, is_discrete


def _commonest_kind(chunk: list[Candidate]) -> Kind | None:
    kinds = Counter(
        (values.shape[-1], is_discrete) for row, values, is_discrete in chunk if row.fault is None and values.size
    )
    return kinds.most_common(1)[0][0] if kinds else None


def _validated(row: Row, values: Values, is_discrete: bool, kind: Kind | None, what: str) -> Row:
    fault = row.fault
    if fault is None and (kind is None or not values.size):
        fault = f"no {what}"
    elif fault is None and kind is not None and (values.shape[-1], is_discrete) != kind:
        fault = f"{what} of width {values.shape[-1]}, the others have {kind[0]}"
    elif fault is None and not np.isfinite(values).all():
        fault = f"{what} with NaN or infinity"
    elif fault is None and is_discrete and (values.min() < 0 or values.max() >= MAX_TOKEN):
        fault = f"discrete tokens are whole numbers from 0 to {MAX_TOKEN - 1}"
    return row if fault is None else replace(row, fault=fault)
