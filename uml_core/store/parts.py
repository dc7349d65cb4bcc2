"""One part of a store: the file that rows are embedded into together, written in one rename.

Columns `id`, `label`, `split`, and `embedding` fixed_size_list[D] or, in token mode, `tokens` list<fixed_size_list[D]>.
The file's metadata holds what a later run must know without reading the columns: the 128-bit key of every row in it,
rows per split and class, and the rows that could not be read. So a row is in a part or in no part, never in two states.

Shape legend: N rows, T tokens of one row, D embedding width.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from uml_core.corpora.rows import HASH, Hashes, Row

PREFIX = "part-"
FACTS_KEY = b"uml.part"
Values = npt.NDArray[Any] | Sequence[npt.NDArray[Any]]  # (N, D), or N of (T, D)
ClassCounts = dict[str, dict[str, int]]  # split -> label ("" for none) -> rows


@dataclass(frozen=True)
class RejectedRow:
    id: str
    label: str | None
    split: str
    reason: str


@dataclass(frozen=True)
class PartFooter:
    """What a part's metadata says: its rows' keys, the embedded rows first and the rejected ones after them."""

    name: str
    keys: Hashes
    rows_per_class: ClassCounts
    rejected: tuple[RejectedRow, ...]

    @property
    def num_rows(self) -> int:
        return len(self.keys) - len(self.rejected)


Part = tuple[pa.Table, PartFooter]


def keys_of(rows: Sequence[Row]) -> Hashes:
    return np.fromiter((row.key for row in rows), dtype=HASH, count=len(rows))


def part_name(keys: Hashes) -> str:
    """The file name of a part: the same rows have the same name, whoever writes them."""
    return f"{PREFIX}{hashlib.blake2b(np.sort(keys).tobytes(), digest_size=8).hexdigest()}.parquet"


def part_table(rows: Sequence[Row], values: Values, rejected: Sequence[tuple[Row, str]], *, dim: int) -> Part:
    """The table of a part, and what its metadata says.

    Args:
        rows: the embedded rows, N of them.
        values: (N, D) in the dtype to store; in token mode a list of N arrays (T, D).
        rejected: unreadable rows with their reasons.
        dim: D, which an empty list of token arrays does not tell.
    """
    assert len(rows) == len(values), (len(rows), len(values))
    columns = {
        "id": pa.array([row.id for row in rows], pa.string()),
        "label": pa.array([row.label for row in rows], pa.string()),
        "split": pa.array([row.split for row in rows], pa.string()),
    }
    if isinstance(values, np.ndarray):
        columns["embedding"] = _fixed_size_list(values.reshape(-1, dim))
    else:
        offsets = np.concatenate([[0], np.cumsum([len(tokens_TD) for tokens_TD in values])]).astype(np.int32)
        flat = np.concatenate([np.empty((0, dim), dtype=values[0].dtype if values else np.float32), *values])
        columns["tokens"] = pa.ListArray.from_arrays(pa.array(offsets), _fixed_size_list(flat))
    bad = tuple(RejectedRow(row.id, row.label, row.split, reason) for row, reason in rejected)
    keys = np.concatenate([keys_of(rows), keys_of([row for row, _ in rejected])])
    return _with_facts(pa.table(columns), keys, bad)


def without_keys(table: pa.Table, footer: PartFooter, dropped: npt.NDArray[np.bool_]) -> Part:
    """A part without some of its rows; `dropped` (rows + rejected,) is in the footer's order."""
    keep = ~dropped
    kept_rows = table.filter(pa.array(keep[: footer.num_rows]))
    kept_rejected = keep[footer.num_rows :]
    rejected = tuple(row for row, kept in zip(footer.rejected, kept_rejected, strict=True) if kept)
    return _with_facts(kept_rows, footer.keys[keep], rejected)


def joined(tables: Sequence[pa.Table], footers: Sequence[PartFooter]) -> Part:
    """The rows of several parts as one."""
    embedded = [footer.keys[: footer.num_rows] for footer in footers]
    rejected = [footer.keys[footer.num_rows :] for footer in footers]
    bad = tuple(row for footer in footers for row in footer.rejected)
    return _with_facts(pa.concat_tables(tables), np.concatenate([*embedded, *rejected]), bad)


def dropped_ids(table: pa.Table, footer: PartFooter, dropped: npt.NDArray[np.bool_]) -> list[str]:
    stored: list[str] = table["id"].filter(pa.array(dropped[: footer.num_rows])).to_pylist()
    return stored + [row.id for row, gone in zip(footer.rejected, dropped[footer.num_rows :], strict=True) if gone]


def read_footer(name: str, metadata: dict[bytes, bytes] | None) -> PartFooter | None:
    """What a part's metadata says, or None for a file of an older schema."""
    if not metadata or FACTS_KEY not in metadata:
        return None
    facts = json.loads(metadata[FACTS_KEY])
    keys, bits = (facts["row_keys"], 128) if "row_keys" in facts else (facts["keys"], 64)  # 64: by an earlier version
    return PartFooter(
        name=name,
        keys=np.frombuffer(base64.b64decode(keys), dtype=f"S{bits // 8}").astype(HASH),
        rows_per_class=facts["rows_per_class"],
        rejected=tuple(RejectedRow(**row) for row in facts["rejected"]),
    )


def _with_facts(table: pa.Table, keys: Hashes, rejected: tuple[RejectedRow, ...]) -> Part:
    pairs = Counter(zip(table["split"].to_pylist(), table["label"].to_pylist(), strict=True))
    counts: ClassCounts = {}
    for (split, label), count in pairs.items():
        counts.setdefault(split, {})[label or ""] = count
    facts = {
        "row_keys": base64.b64encode(keys.tobytes()).decode(),
        "rows_per_class": counts,
        "rejected": [asdict(row) for row in rejected],
    }
    footer = PartFooter(part_name(keys), keys, counts, rejected)
    return table.replace_schema_metadata({FACTS_KEY: json.dumps(facts)}), footer


def _fixed_size_list(values_ND: npt.NDArray[Any]) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values_ND.reshape(-1)), values_ND.shape[1])
