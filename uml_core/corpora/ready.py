"""Ready embeddings: Parquet files the user computed, validated and adopted into the store without encoding.

In: a file or folder of Parquet with columns embedding (list of floats, one width), and optionally id, label, split.
Out: `ReadyEmbeddings`; rows with NaN or infinity, or of another width, are set apart with their reason.

Shape legend: N rows, D embedding width.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from uml_core.config import CorpusConfig, hash_of
from uml_core.corpora.rows import Row, canonical_split
from uml_core.errors import InputError, listing
from uml_core.store import RejectedRow


@dataclass(frozen=True)
class ReadyEmbeddings:
    """Adopted rows with their embeddings (N, D), and the rows that cannot be used."""

    rows: tuple[Row, ...]
    embeddings: npt.NDArray[np.float32]
    rejected: tuple[RejectedRow, ...]


def ready_identity(name: str, corpus: CorpusConfig) -> dict[str, object]:
    """Return what names the store folder of ready embeddings: the files' sizes and times stand for their content."""
    files = _parquet_files(name, corpus)
    stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return {"source": "embeddings", "name": Path(corpus.path or "").name, "content": hash_of(stamps)}


def read_ready_embeddings(name: str, corpus: CorpusConfig) -> ReadyEmbeddings:
    """Read and validate ready embeddings.

    Raises:
        InputError: no file, no embedding column, an embedding column that is not a list of numbers, or no rows.
    """
    tables = [_read_table(name, file) for file in _parquet_files(name, corpus)]
    table = pa.concat_tables(tables, promote_options="permissive")
    if table.num_rows == 0:
        raise InputError(f"corpora.{name} is empty: no rows in {corpus.path}")
    vectors = [np.asarray(value, dtype=np.float32) for value in table["embedding"].to_pylist()]
    widths = Counter(vector.size for vector in vectors if vector.ndim == 1)
    dim = widths.most_common(1)[0][0]
    rows, kept, rejected = [], [], []
    for row, vector in zip(_rows(table), vectors, strict=True):
        reason = _fault(vector, dim)
        if reason is None:
            rows.append(row)
            kept.append(vector)
        else:
            rejected.append(RejectedRow(row.id, row.label, row.split, reason))
    if not kept:
        raise InputError(f"corpora.{name}.path {corpus.path} has no usable embedding: {rejected[0].reason}")
    return ReadyEmbeddings(tuple(rows), np.stack(kept), tuple(rejected))


def _fault(vector: npt.NDArray[np.float32], dim: int) -> str | None:
    if vector.ndim != 1 or vector.size == 0:
        return "no embedding"
    if vector.size != dim:
        return f"embedding of width {vector.size}, the others have {dim}"
    return None if np.isfinite(vector).all() else "embedding holds NaN or infinity"


def _parquet_files(name: str, corpus: CorpusConfig) -> list[Path]:
    path = Path(corpus.path or "")
    files = sorted(path.glob("**/*.parquet")) if path.is_dir() else [path] if path.is_file() else []
    if not files:
        raise InputError(
            f"corpora.{name}.path is {corpus.path}; format embeddings needs a Parquet file or a folder of them"
        )
    return files


def _read_table(name: str, file: Path) -> pa.Table:
    try:
        table = pq.read_table(file, partitioning=None)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"corpora.{name}.path {file} is not readable as Parquet: {error}") from None
    if "embedding" not in table.column_names:
        raise InputError(
            f"corpora.{name}.path {file} has columns {listing(table.column_names)}; "
            "format embeddings needs a column embedding (and label, split, id where there are any)"
        )
    value_type = getattr(table.schema.field("embedding").type, "value_type", pa.null())
    if not (pa.types.is_floating(value_type) or pa.types.is_integer(value_type)):
        raise InputError(f"corpora.{name}.path {file}: column embedding is not a list of numbers")
    return table


def _rows(table: pa.Table) -> list[Row]:
    def column(name: str) -> list[object]:
        return list(table[name].to_pylist()) if name in table.column_names else [None] * table.num_rows

    ids, labels, splits = column("id"), column("label"), column("split")
    width = len(str(table.num_rows))
    return [
        Row(
            id=str(row_id) if row_id is not None else f"row-{index:0{width}d}",
            label=None if label is None else str(label),
            split=canonical_split(str(split)) if split is not None else "train",
        )
        for index, (row_id, label, split) in enumerate(zip(ids, labels, splits, strict=True))
    ]
