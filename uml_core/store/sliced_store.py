"""A corpus that was embedded in slices: STORE/CORPUS/FINGERPRINT/slice-NNNN/part-*.parquet, and one manifest for all.

In: what each slice lists, as it is listed. Out: the slices' parts under the corpus's manifest, which names them as
slice-NNNN/part-*.parquet, so that readers of a store open them as any other and list no folder.

Nobody holds more than a slice: its listing (`Listed`) lies beside its parts until it is settled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from uml_core.config import hash_of
from uml_core.corpora.rows import HASH, Hashes, contains, hashes_of
from uml_core.errors import InputError
from uml_core.files.atomic import TEMPORARY, read_if_there, write_whole
from uml_core.store.corpus_store import MANIFEST, REJECTED, SCHEMA_VERSION, CorpusStore
from uml_core.store.parts import PREFIX, PartFooter, joined

SLICES = "slices.json"
SMALL = 8  # so many parts, each of at most a part's rows divided by it, are joined
RANGES = 64  # of ids: two equal ones lie in the same range, whatever their slices


@dataclass(frozen=True)
class Listed:
    """What a slice came to when it was listed to its end, by hashes, each sorted: all rows, all ids, missing ids.

    With whether it `has_files` that are rows of their own, whose changes its shards and tables do not show.
    """

    keys: Hashes
    ids: Hashes
    missing_ids: Hashes
    has_files: bool


class SliceStore(CorpusStore):
    """One slice, as one run lists, embeds and settles it; the run holds the lease of the whole corpus."""

    def begin(self, run: str) -> Hashes:
        """The keys that were stored when the run began with this slice, sorted.

        Also where the task that lists is begun again: its parts are then the same, as Ray takes for granted.
        """
        path = f"{self.directory}/{TEMPORARY}{run}-begun"
        if (names := read_if_there(self._fs, path)) is None:
            self._drop_temporaries()
            names = json.dumps(self.part_names()).encode()
            write_whole(self._fs, path, names)
        return self.stored_keys(json.loads(names))

    def leave(self, run: str, listed: Listed) -> None:
        """Leave a listing for `settle_listed` and `ids_in`; where it is, the slice was listed to its end."""
        edges = np.array([bytes([256 * part // RANGES]) for part in range(RANGES)], dtype=HASH)
        starts = [*np.searchsorted(listed.ids, edges).tolist(), len(listed.ids)]
        sizes = {"keys": len(listed.keys), "missing": len(listed.missing_ids), "starts": starts}
        sizes["has_files"] = listed.has_files
        write_whole(self._fs, self._left(run, "ids"), listed.ids.tobytes())
        write_whole(self._fs, self._left(run, "keys"), listed.keys.tobytes() + listed.missing_ids.tobytes())
        write_whole(self._fs, self._left(run, "sizes"), json.dumps(sizes).encode())

    def ids_in(self, run: str, part: int) -> Hashes:
        """The ids of one of RANGES, sorted; no others are read."""
        starts = self._sizes(run)["starts"]
        with self._fs.open_input_file(self._left(run, "ids")) as file:
            content = file.read_at((starts[part + 1] - starts[part]) * HASH.itemsize, starts[part] * HASH.itemsize)
        return np.frombuffer(content, dtype=HASH)

    def settle_listed(self, run: str, part_rows: int) -> dict[str, Any]:
        """Leave each listed row in one part of the slice's manifest, and no other; returns that, and `has_files`.

        Other parts stay until `drop_settled`: the corpus's manifest, which readers go by, may list them.
        """
        sizes = self._sizes(run)
        num_keys = sizes["keys"]
        content = np.frombuffer(read_if_there(self._fs, self._left(run, "keys")) or b"", dtype=HASH)
        keys, missing = content[:num_keys], content[num_keys:]
        manifest = self.read_manifest()
        if manifest is None or len(missing) or not self.holds_exactly(manifest, keys):
            settled = self.settle(self.footers(), keys)
            if lost := len(keys) - len(settled.keys):
                raise RuntimeError(f"{lost} rows are in no part of {self.directory}; run it again")
            changed = int(contains(missing, hashes_of(settled.stale_ids)).sum())
            stale, new = len(settled.stale_ids) - changed, len(missing) - changed
            facts = {"run": run, "new": new, "changed": changed, "removed": stale}
            manifest = self.write_manifest(self._compacted(settled.parts, part_rows), facts)
        self._drop_temporaries()
        return {**manifest, "has_files": sizes["has_files"]}

    def _compacted(self, parts: Sequence[PartFooter], part_rows: int) -> Sequence[PartFooter]:
        """The parts, SMALL small ones as one: each run with a few new rows leaves one."""
        small = [part for part in parts if len(part.keys) <= part_rows // SMALL][:SMALL]
        if len(small) < SMALL:
            return parts
        names = {part.name for part in small}
        tables = [self._read_parquet(f"{self.directory}/{part.name}") for part in small]
        return [*(part for part in parts if part.name not in names), self._write_part(*joined(tables, small))]

    def drop_settled(self) -> None:
        """Delete the parts that the slice's manifest does not list, once the corpus's does not either."""
        self.drop_unlisted(self.finished_manifest())

    def _sizes(self, run: str) -> dict[str, Any]:
        content = read_if_there(self._fs, self._left(run, "sizes"))
        if content is None:
            raise RuntimeError(f"{self.directory} was not listed to its end; run it again")
        sizes: dict[str, Any] = json.loads(content)
        return sizes

    def _left(self, run: str, what: str) -> str:
        return f"{self.directory}/{TEMPORARY}{run}-{what}"


class SlicedStore(CorpusStore):
    """The whole of a corpus that is embedded in slices."""

    def slice(self, index: int) -> SliceStore:
        return SliceStore(self.uri, self.corpus, f"{self.fingerprint}/slice-{index:04d}")

    def num_slices(self) -> int | None:
        """How many this store was begun with, 1 where it was begun without, None where it is not begun."""
        content = read_if_there(self._fs, f"{self.directory}/{SLICES}")
        if content is not None:
            return int(json.loads(content))
        return 1 if self.read_manifest() is not None or self.part_names() else None

    def begin_slices(self, count: int) -> None:
        """Keep how many slices there are. Raises InputError where another run has begun the store otherwise."""
        if self.num_slices() not in (None, count):
            raise InputError(
                f"{self.directory} was begun by another run meanwhile, not in {count} slices; run the same line again, "
                "which goes on as it was begun"
            )
        write_whole(self._fs, f"{self.directory}/{SLICES}", json.dumps(count).encode())

    def publish_slices(self, slices: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> dict[str, Any]:
        """Write rejected.parquet and the manifest over the slices' manifests, which makes their parts visible."""
        self._check_lease()
        rejected = [self._read_parquet(f"{self.directory}/slice-{at:04d}/{REJECTED}") for at in range(len(slices))]
        self._write_parquet(pa.concat_tables(rejected), REJECTED)
        counts: dict[str, dict[str, int]] = {}
        for split, classes in (pair for each in slices for pair in each["rows_per_class"].items()):
            of_split = counts.setdefault(split, {})
            of_split.update({label: of_split.get(label, 0) + count for label, count in classes.items()})
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "corpus": self.corpus,
            "fingerprint": self.fingerprint,
            "slices": len(slices),
            **facts,
            "rows": sum(each["rows"] for each in slices),
            "rows_per_split": {split: sum(counts[split].values()) for split in sorted(counts)},
            "rows_per_class": {split: dict(sorted(counts[split].items())) for split in sorted(counts)},
            "rejected_rows": sum(each["rejected_rows"] for each in slices),
            "rows_digest": digest_of_slices(slices),
            "parts": list(_parts(slices)),
        }
        self._write(manifest)
        self.drop_unlisted(manifest)
        return manifest

    def unchanged_manifest(self, files: str | None) -> dict[str, Any] | None:
        """The manifest where it is of just these `files` (`files_digest`), and just its parts are on disk."""
        manifest = self.read_manifest()
        if files is None or manifest is None or manifest.get("files") != files:
            return None
        below = self._fs.get_file_info(pafs.FileSelector(self.directory, recursive=True))
        there = [info.path[len(self.directory) + 1 :] for info in below if info.base_name.startswith(PREFIX)]
        return manifest if sorted(there) == sorted(manifest["parts"]) else None

    def note_files(self, manifest: Mapping[str, Any], files: str | None) -> None:
        """Keep the files that were found to hold just what the manifest says, for `unchanged_manifest`."""
        if manifest.get("files") != files:
            self._write({**manifest, "files": files})

    def _write(self, manifest: Mapping[str, Any]) -> None:
        write_whole(self._fs, f"{self.directory}/{MANIFEST}", json.dumps(manifest, ensure_ascii=False).encode())


def lists_slices(manifest: Mapping[str, Any], slices: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a corpus's manifest is about just the rows of its slices, in just their parts."""
    return (manifest["rows_digest"], manifest["parts"]) == (digest_of_slices(slices), list(_parts(slices)))


def digest_of_slices(slices: Sequence[Mapping[str, Any]]) -> str:
    """A short text over the rows of all slices: equal for equal rows in equal slices."""
    return hash_of([each["rows_digest"] for each in slices])


def repeated_id(stores: Sequence[SliceStore], run: str, part: int) -> tuple[int, int, bytes] | None:
    """Two slices that list the same id of one of RANGES, and its hash; None where no two do."""
    found = [store.ids_in(run, part) for store in stores]
    every = np.sort(np.concatenate(found))
    again = every[1:][every[1:] == every[:-1]]
    if not len(again):
        return None
    first, second = [index for index, ids in enumerate(found) if contains(ids, again[:1])[0]][:2]
    return first, second, again[0]


def _parts(slices: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for index, each in enumerate(slices):
        yield from (f"slice-{index:04d}/{name}" for name in each["parts"])
