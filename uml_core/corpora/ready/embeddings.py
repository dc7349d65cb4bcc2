"""Ready embeddings: files the user computed, validated and adopted into the store without encoding.

In: Parquet with columns embedding (list of floats, one width), and optionally id, label, split; or .npy with metadata
beside it (see `ready_files`); a file, a folder or a pattern of files. Out: `ReadyEmbeddings` in chunks; rows with NaN
or infinity, of another width or with a repeated id are set apart with their reason.

Shape legend: N rows, D embedding width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from uml_core.config import CorpusConfig
from uml_core.corpora.readers.base import CorpusSource, RecordNames, RowChecks
from uml_core.corpora.ready.array_files import Chunk, chunks_of, content_of, ready_files
from uml_core.corpora.rows import Row
from uml_core.errors import InputError
from uml_core.files.patterns import relative_names

CHUNK_ROWS = 8192
SUFFIXES = (".parquet", ".npy")


@dataclass(frozen=True)
class ReadyEmbeddings:
    """Adopted rows with their embeddings (N, D), and the rows that cannot be used."""

    rows: tuple[Row, ...]
    embeddings: npt.NDArray[np.float32]
    rejected: tuple[Row, ...]  # each with its fault
    vocabulary: None = None  # of token sequences only

    @property
    def dim(self) -> int:
        return int(self.embeddings.shape[1])

    def values(self, dtype: str) -> npt.NDArray[np.floating]:
        return self.embeddings.astype(dtype)


def ready_identity(name: str, corpus: CorpusConfig) -> dict[str, object]:
    """Return what names the store folder of ready embeddings: the files' sizes and times stand for their content."""
    source = CorpusSource(name, corpus)
    return {"source": "embeddings", **content_of(source, ready_files(source, SUFFIXES))}


def read_ready_embeddings(name: str, corpus: CorpusConfig) -> ReadyEmbeddings:
    chunks = list(stream_ready_embeddings(name, corpus))
    return ReadyEmbeddings(
        tuple(row for chunk in chunks for row in chunk.rows),
        np.concatenate([chunk.embeddings for chunk in chunks]),
        tuple(row for chunk in chunks for row in chunk.rejected),
    )


def stream_ready_embeddings(
    name: str, corpus: CorpusConfig, *, chunk_rows: int = CHUNK_ROWS
) -> Iterator[ReadyEmbeddings]:
    """Yield validated rows with their embeddings, some thousand at a time; every chunk has the width `ready_width`.

    Raises:
        InputError: while iterating; no file, a file that is neither Parquet with a column embedding nor an array of
            numbers, metadata of another length, no rows, or no usable row.
    """
    source = CorpusSource(name, corpus)
    files = ready_files(source, SUFFIXES)
    dim = ready_width(name, corpus, chunk_rows=chunk_rows)
    names, checks = RecordNames(corpus.split), RowChecks()
    found = False
    for file, relative in zip(files, relative_names(files), strict=True):
        names.prefix = f"{relative}/" if len(files) > 1 else ""
        position = 0
        for chunk in chunks_of(source.setting, file, chunk_rows):
            adopted = _adopt(chunk, dim, position, names, checks)
            position += len(chunk.records)
            found = found or bool(adopted.rows)
            first_reason = adopted.rejected[0].fault if adopted.rejected else ""
            yield adopted
    if not found:
        raise InputError(f"{source.setting} {source.location} has no usable embedding: {first_reason}")


def ready_width(name: str, corpus: CorpusConfig, *, chunk_rows: int = CHUNK_ROWS) -> int:
    """Return the width D of a corpus's embeddings: the commonest one of the first chunk that has any.

    Raises:
        InputError: there are no rows, or none has an embedding.
    """
    source = CorpusSource(name, corpus)
    rows = 0
    for file in ready_files(source, SUFFIXES):
        for chunk in chunks_of(source.setting, file, chunk_rows):
            rows += len(chunk.records)
            widths = Counter(chunk.widths[chunk.widths > 0].tolist())
            if widths:
                return int(widths.most_common(1)[0][0])
    if not rows:
        raise InputError(f"corpora.{name} is empty: no rows in {source.location}")
    raise InputError(f"{source.setting} {source.location} has no usable embedding: no embedding")


def _adopt(chunk: Chunk, dim: int, position: int, names: RecordNames, checks: RowChecks) -> ReadyEmbeddings:
    """Validate one chunk; `position` counts the file's rows before it."""
    fits = chunk.widths == dim
    matrix = chunk.values[np.repeat(fits, chunk.widths)].reshape(-1, dim)
    finite = np.zeros(len(fits), dtype=np.bool_)
    finite[fits] = np.isfinite(matrix).all(axis=1)
    rows = []
    for index, record in enumerate(chunk.records):
        named = names.named(position + index, record.values)
        fault = record.fault or named.fault or _fault(int(chunk.widths[index]), dim, is_finite=bool(finite[index]))
        rows.append(Row(named.id, named.label, named.split, fault=fault))
    rows = checks.apply(rows)
    usable = np.array([row.fault is None for row in rows], dtype=np.bool_)
    return ReadyEmbeddings(
        tuple(row for row in rows if row.fault is None),
        matrix[usable[fits]],
        tuple(row for row in rows if row.fault is not None),
    )


def _fault(width: int, dim: int, *, is_finite: bool) -> str | None:
    if width == 0:
        return "no embedding"
    if width != dim:
        return f"embedding of width {width}, the others have {dim}"
    return None if is_finite else "embedding holds NaN or infinity"
