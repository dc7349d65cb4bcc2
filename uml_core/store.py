"""The embedding store: STORE/CORPUS/FINGERPRINT/part-KEY.parquet with manifest.json and rejected.parquet.

In: rows and their embeddings, a part at a time. Out: numpy arrays for training. Any pyarrow filesystem will do.

A part's key is a hash of its rows (ids, labels, splits, file stamps), so a part that exists is done. A part is written
under a temporary name and renamed; its rejected rows travel in its own metadata, so a row is never in two places and
never in none. Only the parts that the manifest lists are data: leftovers of killed runs are not read.

Shape legend: N rows, D embedding width.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from uml_core.config import hash_of
from uml_core.corpora.rows import Row
from uml_core.errors import InputError, listing

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
REJECTED = "rejected.parquet"
REJECTED_KEY = b"uml.rejected"


@dataclass(frozen=True)
class Part:
    """The rows that are embedded and written together, and the key that names their file."""

    key: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class RejectedRow:
    """A row that could not be read, and why."""

    id: str
    label: str | None
    split: str
    reason: str


@dataclass(frozen=True)
class CorpusTable:
    """An embedded corpus as arrays: embeddings (N, D) float32, label and split codes (N,) into their name tuples."""

    embeddings: npt.NDArray[np.float32]
    label_codes: npt.NDArray[np.int64]  # -1 where there is no label
    label_names: tuple[str, ...]
    split_codes: npt.NDArray[np.int64]
    split_names: tuple[str, ...]


@dataclass(frozen=True)
class RejectedRows:
    """The unreadable rows among all rows of some parts."""

    rows: tuple[RejectedRow, ...]
    total_rows: int


def plan_parts(rows: Sequence[Row], part_rows: int) -> list[Part]:
    """Cut rows into parts of `part_rows`; a part's key changes when any of its rows changes."""
    parts = []
    for start in range(0, len(rows), part_rows):
        chunk = tuple(rows[start : start + part_rows])
        content = [(row.id, row.label, row.split, row.text, row.path, row.stamp) for row in chunk]
        parts.append(Part(hash_of(content), chunk))
    return parts


class CorpusStore:
    """One corpus embedded by one encoder: the folder STORE/CORPUS/FINGERPRINT."""

    def __init__(self, uri: str, corpus: str, fingerprint: str) -> None:
        self.uri, self.corpus, self.fingerprint = uri, corpus, fingerprint
        filesystem, root = open_filesystem(uri)
        self._fs, self._corpus_dir = filesystem, f"{root}/{corpus}"
        self.directory = f"{self._corpus_dir}/{fingerprint}"

    def part_exists(self, key: str) -> bool:
        """Return whether a part is already written."""
        return bool(self._fs.get_file_info(self._part_path(key)).type == pafs.FileType.File)

    def write_part(
        self, key: str, rows: Sequence[Row], embeddings: npt.NDArray[Any], rejected: Sequence[RejectedRow]
    ) -> None:
        """Write one part: rows with their embeddings (N, D), and the rejected rows in the file's metadata."""
        assert len(rows) == len(embeddings), (len(rows), len(embeddings))
        table = pa.table(
            {
                "id": pa.array([row.id for row in rows], pa.string()),
                "label": pa.array([row.label for row in rows], pa.string()),
                "split": pa.array([row.split for row in rows], pa.string()),
                "embedding": _fixed_size_list(embeddings),
            }
        )
        rejected_json = json.dumps([asdict(row) for row in rejected])
        self._write_parquet(table.replace_schema_metadata({REJECTED_KEY: rejected_json}), self._part_path(key))

    def finalise(self, keys: Sequence[str], facts: Mapping[str, Any]) -> dict[str, Any]:
        """Write rejected.parquet and then the manifest, which makes the parts visible; drop parts of older plans."""
        splits: Counter[str] = Counter()
        classes: dict[str, Counter[str]] = {}
        for key in keys:
            table = self._read_parquet(self._part_path(key), ["label", "split"])
            for label, split in zip(table["label"].to_pylist(), table["split"].to_pylist(), strict=True):
                splits[split] += 1
                classes.setdefault(split, Counter())[label or ""] += 1
        rejected = [asdict(row) for row in self.rejected_in(keys).rows]
        schema = pa.schema([(name, pa.string()) for name in ("id", "label", "split", "reason")])
        self._write_parquet(pa.Table.from_pylist(rejected, schema=schema), f"{self.directory}/{REJECTED}")
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "corpus": self.corpus,
            "fingerprint": self.fingerprint,
            **facts,
            "rows": sum(splits.values()),
            "rows_per_split": dict(sorted(splits.items())),
            "rows_per_class": {split: dict(sorted(counts.items())) for split, counts in sorted(classes.items())},
            "rejected_rows": len(rejected),
            "parts": list(keys),
        }
        self._write_bytes(json.dumps(manifest, indent=1, ensure_ascii=False).encode(), f"{self.directory}/{MANIFEST}")
        self._drop_leftovers(set(keys))
        return manifest

    def rejected_in(self, keys: Sequence[str]) -> RejectedRows:
        """Return the unreadable rows of some written parts, from the parts' own metadata."""
        rows: list[RejectedRow] = []
        total = 0
        for key in keys:
            metadata = pq.read_metadata(self._part_path(key), filesystem=self._fs)
            rejected = json.loads(metadata.metadata[REJECTED_KEY])
            rows += [RejectedRow(**record) for record in rejected]
            total += metadata.num_rows + len(rejected)
        return RejectedRows(tuple(rows), total)

    def read_manifest(self) -> dict[str, Any] | None:
        """Return the manifest, or None where the corpus has not been embedded to the end."""
        path = f"{self.directory}/{MANIFEST}"
        if self._fs.get_file_info(path).type != pafs.FileType.File:
            return None
        with self._fs.open_input_stream(path) as stream:
            manifest: dict[str, Any] = json.loads(stream.read())
        return manifest

    def rejected_rows(self) -> list[RejectedRow]:
        """Return the rows that could not be read."""
        table = self._read_parquet(f"{self.directory}/{REJECTED}", ["id", "label", "split", "reason"])
        return [RejectedRow(**record) for record in table.to_pylist()]

    def load(self) -> CorpusTable:
        """Read every part of the manifest into arrays, each part once.

        Raises:
            InputError: the corpus is not embedded by this encoder (other fingerprints are named), or holds NaN.
        """
        manifest = self.read_manifest()
        if manifest is None:
            raise InputError(self._missing_message())
        columns = ["label", "split", "embedding"]
        table = pa.concat_tables([self._read_parquet(self._part_path(key), columns) for key in manifest["parts"]])
        embeddings = _to_matrix(table["embedding"], manifest["dim"])
        if not np.isfinite(embeddings).all():
            bad = int((~np.isfinite(embeddings).all(axis=1)).sum())
            raise InputError(
                f"store {self.directory} holds {bad} embeddings with NaN or infinity; delete it and embed again"
            )
        label_names, label_codes = _codes(table["label"])
        split_names, split_codes = _codes(table["split"])
        return CorpusTable(embeddings, label_codes, label_names, split_codes, split_names)

    def load_ids(self) -> tuple[str, ...]:
        """Read every row's id, in the order of `load`: for looking at rows, never for training."""
        manifest = self.read_manifest()
        if manifest is None:
            raise InputError(self._missing_message())
        parts = [self._read_parquet(self._part_path(key), ["id"]) for key in manifest["parts"]]
        return tuple(pa.concat_tables(parts)["id"].to_pylist())

    def _missing_message(self) -> str:
        selector = pafs.FileSelector(self._corpus_dir, allow_not_found=True)
        others = [info.base_name for info in self._fs.get_file_info(selector) if info.type == pafs.FileType.Directory]
        found = f"; it was embedded by another encoder or setting (found {listing(others)})" if others else ""
        return (
            f"store {self.uri} has no finished embeddings of corpus '{self.corpus}' with fingerprint {self.fingerprint}"
            f"{found}; run python -m pipelines.embed with this experiment file first"
        )

    def _part_path(self, key: str) -> str:
        return f"{self.directory}/part-{key}.parquet"

    def _drop_leftovers(self, keys: set[str]) -> None:
        keep = {f"part-{key}.parquet" for key in keys} | {MANIFEST, REJECTED}
        for info in self._fs.get_file_info(pafs.FileSelector(self.directory)):
            # Another run's temporary file may still be in use; only whole parts of older plans go.
            if info.base_name not in keep and info.base_name.startswith("part-"):
                self._fs.delete_file(info.path)

    def _read_parquet(self, path: str, columns: list[str]) -> pa.Table:
        return pq.read_table(path, columns=columns, filesystem=self._fs, partitioning=None)

    def _write_parquet(self, table: pa.Table, path: str) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self._write_bytes(sink.getvalue().to_pybytes(), path)

    def _write_bytes(self, content: bytes, path: str) -> None:
        self._fs.create_dir(str(Path(path).parent), recursive=True)
        temporary = f"{Path(path).parent}/tmp-{uuid.uuid4().hex}"
        with self._fs.open_output_stream(temporary) as stream:
            stream.write(content)
        self._fs.move(temporary, path)


def open_filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return the pyarrow filesystem and root path of a directory or URI. Raises InputError for an unknown scheme."""
    if "://" not in uri:
        return pafs.LocalFileSystem(), str(Path(uri).resolve())
    try:
        filesystem, path = pafs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"store is {uri}; not a directory or URI that pyarrow opens: {error}") from None
    return filesystem, path.rstrip("/")


def _fixed_size_list(embeddings: npt.NDArray[Any]) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), embeddings.shape[1])


def _to_matrix(column: pa.ChunkedArray, dim: int) -> npt.NDArray[np.float32]:
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim) for chunk in column.chunks]
    return np.concatenate(chunks).astype(np.float32, copy=False)


def _codes(column: pa.ChunkedArray) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """Return sorted names and each row's index into them (-1 for null)."""
    names = sorted(name for name in column.unique().to_pylist() if name is not None)
    position = {name: index for index, name in enumerate(names)}
    codes = [-1 if value is None else position[value] for value in column.to_pylist()]
    return tuple(names), np.asarray(codes, dtype=np.int64)
