"""Ready token sequences: the user's files and MultiBench's pickles, validated and adopted into the store.

In: a corpus of format tokens (`sequence_files`) or multibench. Out: `ReadySequences` in chunks; rows without tokens,
with NaN or infinity, of another width or with a repeated id are set apart with their reason.

Shape legend: T tokens of a row, D width of a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from uml_core.config import CorpusConfig
from uml_core.corpora.readers.base import CorpusSource, RecordNames, RowChecks
from uml_core.corpora.ready.array_files import content_of, ready_files
from uml_core.corpora.ready.multibench import read_multibench
from uml_core.corpora.ready.sequence_files import SUFFIXES, token_records
from uml_core.corpora.rows import Row
from uml_core.errors import InputError
from uml_core.files.patterns import relative_names

CHUNK_ROWS = 1024
MAX_TOKEN = 2**24  # whole numbers below it are exact in float32

Tokens = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ReadySequences:
    """Adopted rows with their tokens (T, D); `vocabulary` is above every discrete token so far, None for vectors."""

    rows: tuple[Row, ...]
    tokens: tuple[Tokens, ...]
    rejected: tuple[Row, ...]  # each with its fault
    dim: int
    vocabulary: int | None

    def values(self, dtype: str) -> list[npt.NDArray[np.floating]]:
        return [tokens.astype(dtype) for tokens in self.tokens]


@dataclass(frozen=True)
class _Candidate:
    row: Row
    tokens: Tokens | None
    is_discrete: bool = False


def sequence_identity(name: str, corpus: CorpusConfig) -> dict[str, object]:
    """Return what names the store folder of ready sequences: the files' sizes and times stand for their content."""
    source = CorpusSource(name, corpus)
    reading = {"source": corpus.format, "dataset": corpus.dataset, "field": corpus.field}
    return {**reading, **content_of(source, _files(source))}


def stream_ready_sequences(
    name: str, corpus: CorpusConfig, *, chunk_rows: int = CHUNK_ROWS
) -> Iterator[ReadySequences]:
    """Yield validated rows with their tokens, some hundred at a time; all have the first usable row's width.

    Raises:
        InputError: while iterating; no file, a file that holds no sequences, or no usable row.
    """
    source = CorpusSource(name, corpus)
    chunks = _multibench(source, chunk_rows) if corpus.format == "multibench" else _own(source, chunk_rows)
    checks, kind, vocabulary, first_reason = RowChecks(), None, 0, "it is empty"
    waiting: tuple[Row, ...] = ()  # rejected before the width was known
    found = False
    for chunk in chunks:
        usable = [each for each in chunk if each.row.fault is None and each.tokens is not None and len(each.tokens)]
        if kind is None and usable:
            kind = (int(usable[0].tokens.shape[1]), usable[0].is_discrete)  # type: ignore[union-attr]
        rows = checks.apply(replace(each.row, fault=each.row.fault or _fault(each, kind)) for each in chunk)
        kept = [(row, each.tokens) for row, each in zip(rows, chunk, strict=True) if row.fault is None]
        rejected = tuple(row for row in rows if row.fault is not None)
        first_reason = rejected[0].fault or "" if rejected else first_reason
        if kind is None:
            waiting += rejected
            continue
        dim, is_discrete = kind
        found = found or bool(kept)
        tokens = tuple(tokens for _, tokens in kept if tokens is not None)
        if is_discrete:
            vocabulary = max([vocabulary, *(int(each.max()) + 1 for each in tokens)])
        yield ReadySequences(
            tuple(row for row, _ in kept), tokens, waiting + rejected, dim, vocabulary if is_discrete else None
        )
        waiting = ()
    if not found:
        raise InputError(f"{source.setting} {source.location} has no usable sequence: {first_reason}")


def _fault(candidate: _Candidate, kind: tuple[int, bool] | None) -> str | None:
    tokens = candidate.tokens
    if tokens is None or not len(tokens) or kind is None:
        return "no tokens"
    if (tokens.shape[1], candidate.is_discrete) != kind:
        return f"tokens of width {tokens.shape[1]}, the others have {kind[0]}"
    if not np.isfinite(tokens).all():
        return "tokens hold NaN or infinity"
    if candidate.is_discrete and (tokens.min() < 0 or tokens.max() >= MAX_TOKEN):
        return f"discrete tokens are whole numbers from 0 to {MAX_TOKEN - 1}"
    return None


def _own(source: CorpusSource, chunk_rows: int) -> Iterator[list[_Candidate]]:
    files = _files(source)
    names = RecordNames(source.corpus.split)
    for file, relative in zip(files, relative_names(files), strict=True):
        names.prefix = f"{relative}/" if len(files) > 1 else ""
        position = 0
        for records in token_records(source.setting, file, chunk_rows):
            chunk = []
            for index, each in enumerate(records, start=position):
                named = names.named(index, each.record.values)
                row = Row(named.id, named.label, named.split, fault=each.record.fault or named.fault)
                chunk.append(_Candidate(row, each.tokens, each.is_discrete))
            position += len(records)
            yield chunk


def _multibench(source: CorpusSource, chunk_rows: int) -> Iterator[list[_Candidate]]:
    chunk: list[_Candidate] = []
    for each in read_multibench(source):
        chunk.append(_Candidate(each.row, each.tokens))
        if len(chunk) == chunk_rows:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _files(source: CorpusSource) -> Sequence[str]:
    if source.corpus.format == "multibench":
        source.kind()
        return [source.location]
    return ready_files(source, SUFFIXES)
