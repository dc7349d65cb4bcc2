"""The embedding store: STORE/CORPUS/FINGERPRINT/part-*.parquet with manifest.json and rejected.parquet.

In: rows and their embeddings, a part at a time. Out: numpy arrays for training. Any pyarrow filesystem will do.

Every file is written under a temporary name and renamed. A part knows the keys of its rows (`uml_core.store.parts`), so
what is done is read off the parts themselves, whoever wrote them and whenever they were killed. The manifest makes
parts visible to readers; `settle` and `publish` leave exactly the parts on disk that it lists, each row in one of them.

Shape legend: N rows, D embedding width.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from uml_core.corpora.rows import HASH, Hashes, HashSet, Row, contains
from uml_core.errors import InputError, listing
from uml_core.files.atomic import TEMPORARY, read_if_there, write_whole
from uml_core.files.lease import Lease, is_own_name, lease_beside, leave_name, living_holder
from uml_core.files.paths import STORAGE_ERRORS, is_uri, local_path, one_line, opened
from uml_core.store.corpus_table import CorpusTable, finite_matrix, labelled, order_by_id, unread
from uml_core.store.listing import RowSpool, digest_of
from uml_core.store.parts import (
    PREFIX,
    ClassCounts,
    PartFooter,
    RejectedRow,
    Values,
    dropped_ids,
    part_table,
    read_footer,
    without_keys,
)

SCHEMA_VERSION = 2
MANIFEST = "manifest.json"
REJECTED = "rejected.parquet"
UNLOGGED = ".unlogged"  # who has yet to tell MLflow
UNLOGGED_S = 900.0  # by a host's clock, and SKEW_S more by another's: longer than MLflow is waited for
SUMS = "sums"  # a folder of what was added up over its rows (`uml_core.store.sums_folder`)
FOOTERS_AT_ONCE = 32  # threads: on object storage a footer is a round trip


@dataclass(frozen=True)
class Settled:
    """The parts that hold every listed row once, and the ids of stored rows that the corpus no longer lists."""

    parts: tuple[PartFooter, ...]
    stale_ids: tuple[str, ...]

    @property
    def keys(self) -> Hashes:
        return _keys_of_parts(self.parts)


class CorpusStore:
    """One corpus embedded by one encoder: the folder STORE/CORPUS/FINGERPRINT.

    Where it is opened `without` a split, the rows of that are not read, and those of `load` are the others.
    """

    def __init__(self, uri: str, corpus: str, fingerprint: str, *, without: str | None = None) -> None:
        self.uri, self.corpus, self.fingerprint, self.without = uri, corpus, fingerprint, without
        filesystem, root = open_filesystem(uri)
        self._fs, self._corpus_dir = filesystem, f"{root}/{corpus}"
        self.directory = f"{self._corpus_dir}/{fingerprint}"
        self._lease: Lease | None = None  # while writing

    @contextlib.contextmanager
    def writing(
        self, on_wait: Callable[[], None], *, wait_for_living: bool = True, interrupts: bool | None = None
    ) -> Iterator[bool]:
        """Be the only writer of this folder; what killed writers left half-written is removed first.

        Yields whether this is the writer: not where another one lives and is not waited for (options: `Lease.take`).

        Raises:
            OutageError: the lease was lost meanwhile; what another run has begun to write is left alone.
        """
        lease = Lease(self._fs, lease_beside(self.directory))
        if not lease.take(on_wait, wait_for_living=wait_for_living, interrupts=interrupts):
            yield False
            return
        with lease.held():
            self._lease = lease
            self._drop_temporaries()
            try:
                yield True
            finally:
                self._lease = None
                if not lease.is_lost:
                    self._drop_temporaries()

    def leave_unlogged(self) -> None:
        """Say, until `was_logged`, that this process will tell MLflow of what it has embedded here."""
        leave_name(self._fs, f"{self.directory}/{UNLOGGED}", lasts_s=UNLOGGED_S)

    def is_own_to_log(self) -> bool:
        """Whether no other process has told MLflow, or taken that on, since this one said that it will."""
        return is_own_name(self._fs, f"{self.directory}/{UNLOGGED}")

    def is_unlogged(self) -> bool:
        """Whether who would have told MLflow of this corpus was killed before it did."""
        path = f"{self.directory}/{UNLOGGED}"
        return read_if_there(self._fs, path) is not None and living_holder(self._fs, path) is None

    def was_logged(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.delete_file(f"{self.directory}/{UNLOGGED}")

    def spool(self) -> RowSpool:
        """Where rows to be embedded wait, readable by every worker; it goes with `writing`."""
        return RowSpool(self._fs, f"{self.directory}/{TEMPORARY}rows-{uuid.uuid4().hex}")

    def write_part(self, rows: Sequence[Row], values: Values, rejected: Sequence[tuple[Row, str]], *, dim: int) -> str:
        """Write one part (shapes: `uml_core.store.parts.part_table`) in one rename; returns its file name."""
        return self._write_part(*part_table(rows, values, rejected, dim=dim)).name

    def part_names(self) -> list[str]:
        """The parts on disk, also those that no manifest lists. A part's name comes from its rows."""
        return sorted(info.base_name for info in self._entries() if info.base_name.startswith(PREFIX))

    def stored_keys(self, names: Sequence[str] | None = None) -> Hashes:
        """The keys of the rows in all parts on disk, or in some, sorted: 16 bytes a row, the footers are not kept."""
        keys = _keys_of_parts(self.footers(names))
        keys.sort()
        return keys

    def footers(self, names: Sequence[str] | None = None) -> list[PartFooter]:
        """What every part on disk says of itself; parts of an older schema and damaged files count as absent."""
        names = self.part_names() if names is None else names
        with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
            return [footer for footer in pool.map(self._footer, names) if footer is not None]

    def settle(self, footers: Sequence[PartFooter], listed: Hashes) -> Settled:
        """Rewrite parts so that together they hold each listed row once, and no other row; nothing is encoded again.

        Args:
            footers: the parts on disk.
            listed: the keys of the corpus's rows, sorted.
        """
        self._check_lease()
        seen = HashSet()
        parts: list[PartFooter] = []
        stale: list[str] = []
        for footer in footers:
            gone = ~contains(listed, footer.keys)
            dropped = gone | seen.add(footer.keys)
            if not dropped.any():
                parts.append(footer)
                continue
            table = self._read_parquet(f"{self.directory}/{footer.name}")
            stale += dropped_ids(table, footer, gone)
            if not dropped.all():
                parts.append(self._write_part(*without_keys(table, footer, dropped)))
        return Settled(tuple(parts), tuple(stale))

    def publish(self, parts: Sequence[PartFooter], facts: Mapping[str, Any]) -> dict[str, Any]:
        """Write rejected.parquet and the manifest, which makes the parts visible; delete all other parts, and SUMS."""
        manifest = self.write_manifest(parts, facts)
        self.drop_unlisted(manifest)
        return manifest

    def write_manifest(self, parts: Sequence[PartFooter], facts: Mapping[str, Any]) -> dict[str, Any]:
        self._check_lease()
        counts = _sum_counts(parts)
        rejected = [asdict(row) for part in parts for row in part.rejected]
        schema = pa.schema([(name, pa.string()) for name in ("id", "label", "split", "reason")])
        self._write_parquet(pa.Table.from_pylist(rejected, schema=schema), REJECTED)
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "corpus": self.corpus,
            "fingerprint": self.fingerprint,
            **facts,
            "rows": sum(part.num_rows for part in parts),
            "rows_per_split": {split: sum(classes.values()) for split, classes in counts.items()},
            "rows_per_class": counts,
            "rejected_rows": len(rejected),
            "rows_digest": digest_of(_keys_of_parts(parts)),
            "parts": [part.name for part in parts],
        }
        content = json.dumps(manifest, indent=1, ensure_ascii=False).encode()
        write_whole(self._fs, f"{self.directory}/{MANIFEST}", content)
        return manifest

    def drop_unlisted(self, manifest: Mapping[str, Any]) -> None:
        """Delete the parts that a manifest does not list, and SUMS, which are of the rows as they were."""
        keep = set(manifest["parts"])
        for info in self._entries():
            if info.base_name == SUMS or (info.base_name.startswith(PREFIX) and info.base_name not in keep):
                self._delete(info)

    def read_manifest(self) -> dict[str, Any] | None:
        """The manifest, or None where the corpus has not been embedded to the end."""
        content = read_if_there(self._fs, f"{self.directory}/{MANIFEST}")
        return None if content is None else json.loads(content)

    def holds_exactly(self, manifest: Mapping[str, Any], listed: Hashes) -> bool:
        """Whether the manifest is about just the listed rows, and just its parts are on disk."""
        return manifest.get("rows_digest") == digest_of(listed) and self.part_names() == sorted(manifest["parts"])

    def rejected_rows(self) -> list[RejectedRow]:
        table = self._read_parquet(f"{self.directory}/{REJECTED}", ["id", "label", "split", "reason"])
        return [RejectedRow(**record) for record in table.to_pylist()]

    def load(self) -> CorpusTable:
        """Read every part of the manifest into arrays, each part once; rows are in the order of their ids.

        Parts are named by where and when their rows were found; a run must not depend on that.

        Raises:
            InputError: the corpus is not embedded by this encoder (other fingerprints are named), holds sequences of
                tokens, or holds NaN.
        """
        manifest = self.embeddings_manifest()
        table = self.read_columns(manifest, ["id", "label", "split", "embedding"])
        order = order_by_id(table)
        return labelled(table, order, finite_matrix(table["embedding"], manifest["dim"], self.directory, order=order))

    def load_labels(self, manifest: Mapping[str, Any]) -> CorpusTable:
        """Read labels and splits in the order of `load`, and no embedding: they are `unread`."""
        table = self.read_columns(manifest, ["id", "label", "split"])
        return labelled(table, order_by_id(table), unread(len(table), manifest["dim"]))

    def load_ids(self) -> tuple[str, ...]:
        """Read every row's id, in the order of `load`: for looking at rows, never for training."""
        return tuple(sorted(self.read_columns(self.finished_manifest(), ["id"])["id"].to_pylist()))

    def finished_manifest(self) -> dict[str, Any]:
        manifest = self.read_manifest()
        if manifest is None:
            raise InputError(self._missing_message())
        return {**manifest, "rows": manifest["rows"] - manifest["rows_per_split"].get(self.without, 0)}

    def embeddings_manifest(self) -> dict[str, Any]:
        """The manifest. Raises InputError where it is missing, or of sequences of tokens."""
        manifest = self.finished_manifest()
        if manifest.get("tokens"):
            raise InputError(
                f"corpus '{self.corpus}' is embedded as sequences of tokens, and objective supervised needs one "
                "embedding a row; set objective=self_supervised, or pooling of its encoder to auto, mean or cls and "
                "embed again"
            )
        return manifest

    def read_columns(self, manifest: Mapping[str, Any], columns: list[str]) -> pa.Table:
        with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
            paths = [f"{self.directory}/{name}" for name in manifest["parts"]]
            return pa.concat_tables(pool.map(self._read_parquet, paths, itertools.repeat(columns)))

    def read_part(self, name: str, columns: list[str]) -> pa.Table:
        return self._read_parquet(f"{self.directory}/{name}", columns)

    def part_lengths(self, parts: Sequence[str]) -> list[int]:
        """How many rows each of some parts holds."""

        def length(name: str) -> int:
            return int(pq.read_metadata(f"{self.directory}/{name}", filesystem=self._fs).num_rows)

        with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
            return list(pool.map(length, parts))

    def row_positions(self, manifest: Mapping[str, Any]) -> npt.NDArray[np.int64]:
        """The row of `load` that each stored row becomes (N,), part after part of the manifest."""
        order = order_by_id(self.read_columns(manifest, ["id"]))
        positions = np.empty_like(order)
        positions[order] = np.arange(len(order))
        return positions

    def _missing_message(self) -> str:
        selector = pafs.FileSelector(self._corpus_dir, allow_not_found=True)
        others = [info.base_name for info in self._fs.get_file_info(selector) if info.type == pafs.FileType.Directory]
        others = [name for name in others if name != self.fingerprint]
        found = f"; it was embedded by another encoder or setting (found {listing(others)})" if others else ""
        return (
            f"store {self.uri} has no finished embeddings of corpus '{self.corpus}' with fingerprint {self.fingerprint}"
            f"{found}; run python -m pipelines.embed with this experiment file first"
        )

    def _entries(self) -> list[pafs.FileInfo]:
        entries: list[pafs.FileInfo] = self._fs.get_file_info(pafs.FileSelector(self.directory, allow_not_found=True))
        return entries

    def _check_lease(self) -> None:
        if self._lease is not None:
            self._lease.check()

    def _drop_temporaries(self) -> None:
        for info in self._entries():
            if info.base_name.startswith((TEMPORARY, "tmp-")):  # the second: left by an older version
                self._delete(info)

    def _footer(self, name: str) -> PartFooter | None:
        try:
            metadata = pq.read_schema(f"{self.directory}/{name}", filesystem=self._fs).metadata
        # Damaged on disk: as good as absent, and `publish` deletes it. Or deleted by another run, as we look.
        except (pa.ArrowInvalid, FileNotFoundError):
            return None
        return read_footer(name, metadata)

    def _delete(self, info: pafs.FileInfo) -> None:
        with contextlib.suppress(FileNotFoundError):
            if info.type == pafs.FileType.Directory:
                self._fs.delete_dir(info.path)
            else:
                self._fs.delete_file(info.path)

    def _read_parquet(self, path: str, columns: list[str] | None = None) -> pa.Table:
        others = None if self.without is None else pc.field("split") != self.without
        return pq.read_table(path, columns=columns, filesystem=self._fs, partitioning=None, filters=others)

    def _write_part(self, table: pa.Table, footer: PartFooter) -> PartFooter:
        self._write_parquet(table, footer.name)
        return footer

    def _write_parquet(self, table: pa.Table, name: str) -> None:
        sink = pa.BufferOutputStream()
        # Embeddings hardly compress: the fastest level, and no dictionary of floats.
        pq.write_table(table, sink, compression="zstd", compression_level=1, use_dictionary=["label", "split"])
        write_whole(self._fs, f"{self.directory}/{name}", sink.getvalue())


def open_filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow filesystem and root path of a directory or URI. Raises InputError for an unknown scheme."""
    try:
        return opened(uri if is_uri(uri) else str(Path(local_path(uri)).resolve()))
    except STORAGE_ERRORS as error:
        raise InputError(f"store is {uri}; not a directory or URI that pyarrow opens: {one_line(error)}") from None


def _keys_of_parts(parts: Sequence[PartFooter]) -> Hashes:
    return np.concatenate([np.empty(0, dtype=HASH), *(part.keys for part in parts)])


def _sum_counts(parts: Sequence[PartFooter]) -> ClassCounts:
    counts: dict[str, Counter[str]] = {}
    for part in parts:
        for split, classes in part.rows_per_class.items():
            counts.setdefault(split, Counter()).update(classes)
    return {split: dict(sorted(classes.items())) for split, classes in sorted(counts.items())}
