"""Arrays and data frames as corpora: written once, under a name that comes from their content.

In: embeddings (N, D) with labels, splits and ids, or a data frame of embeddings or sentences. Out: a Parquet file,
STORE/_arrays/HASH.parquet, and the corpus settings that read it (formats embeddings and table).

Shape legend: N rows, D width of an embedding.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from uml_core.errors import InputError, listing
from uml_core.files.atomic import LOCAL, write_whole
from uml_core.files.paths import is_uri, join, local_path, one_line, remote, stamp_of

FOLDER = "_arrays"  # of a store; no corpus can have the name
KINDS = {"embedding": ("vector", "embeddings"), "text": ("text", "table")}  # a column: modality and format
HOLDS = {"embedding": "lists of numbers", "text": "sentences"}
COLUMNS = ("label", "split", "id")


@dataclass(frozen=True)
class Arrays:
    """Rows of one corpus in memory, and its further settings."""

    table: pa.Table
    settings: Mapping[str, Any]

    def written(self, store: str) -> dict[str, Any]:
        """The corpus's settings, its rows written into the store's folder unless they are there."""
        buffer = io.BytesIO()
        pq.write_table(self.table, buffer)
        content = buffer.getvalue()
        path = join(join(store, FOLDER), f"{hashlib.sha256(content).hexdigest()[:12]}.parquet")
        if stamp_of(path) == "missing":  # written anew, its time would change, and with it the store's fingerprint
            write_whole(*(remote(path) if is_uri(path) else (LOCAL, local_path(path))), content)
        modality, format_ = next(kind for column, kind in KINDS.items() if column in self.table.column_names)
        return {"modality": modality, "format": format_, "path": path, **self.settings}


def arrays(
    rows: npt.ArrayLike | pd.DataFrame,
    labels: Sequence[Any] | npt.NDArray[Any] | None = None,
    *,
    split: str | Sequence[str] | None = None,
    ids: Sequence[Any] | None = None,
    **settings: Any,
) -> Arrays:
    """A corpus from memory, for `corpora` of an experiment.

    Args:
        rows: embeddings (N, D); or a data frame with a column `embedding` (D numbers a row) or `text`, and any of
            label, split, id.
        labels: (N,) of anything that has a name; a missing one (None, NaN) is no label.
        split: of each row, or of all.
        ids: (N,); a row's position by default.
        settings: further settings of the corpus, such as role="unlabelled".

    Raises:
        InputError: lengths differ, or there are neither embeddings nor sentences.
    """
    frame = rows if isinstance(rows, pd.DataFrame) else _frame(rows)
    for name, values in (("label", labels), ("split", split), ("id", ids)):
        if values is not None:
            if not isinstance(values, str) and len(values) != len(frame):
                raise InputError(f"{len(frame)} rows and {len(values)} {name}s are given; one {name} a row")
            frame = frame.assign(**{name: values if isinstance(values, str) else list(values)})
    kind = next((column for column in KINDS if column in frame), None)
    if kind is None:
        raise InputError(
            f"a data frame with columns {listing(map(str, frame))} is no corpus; it needs one named embedding or text"
        )
    try:
        columns = {kind: _embeddings(frame[kind]) if kind == "embedding" else pa.array(frame[kind], pa.string())}
    except (ValueError, TypeError, pa.ArrowException) as error:
        raise InputError(f"column {kind} holds something else than {HOLDS[kind]}: {one_line(error)}") from None
    columns |= {name: _names(frame[name]) for name in COLUMNS if name in frame}
    return Arrays(pa.table(columns), settings)


def _frame(rows: npt.ArrayLike) -> pd.DataFrame:
    embeddings = np.asarray(rows)
    if embeddings.ndim != 2 or embeddings.dtype.kind not in "fiu" or not embeddings.shape[1]:
        raise InputError(
            f"an array of shape {embeddings.shape} and type {embeddings.dtype} is no corpus; expected numbers "
            "(rows, width)"
        )
    return pd.DataFrame({"embedding": list(embeddings)})


def _embeddings(cells: pd.Series[Any]) -> pa.Array:
    return pa.array([np.asarray(cell, dtype=np.float32) for cell in cells], pa.list_(pa.float32()))


def _names(values: pd.Series[Any]) -> pa.Array:
    """Names as text, 3.0 as "3"; what is missing stays so."""
    if several := [value for value in values if pd.api.types.is_list_like(value)]:
        raise InputError(f"column {values.name} holds {several[0]!r:.80}; give one name a row")
    return pa.array([None if pd.isna(value) else _name(value) for value in values], pa.string())


def _name(value: Any) -> str:
    return str(int(value)) if isinstance(value, float | np.floating) and float(value).is_integer() else str(value)
