"""What lies in a store: embeddings of each corpus and folders of runs, how large, finished or not, and who writes them.

In: a store and its corpora. Out: one `StoredFolder` for each STORE/CORPUS/FINGERPRINT and STORE/_runs/STEP-HASH/N.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import pyarrow.fs as pafs

from pipelines.ray_train.attempts import LEASE_FILE, RUN_FILE, RUNS_FOLDER
from uml_core.files.atomic import read_if_there
from uml_core.files.lease import Holder, Lease, lease_beside, living_holder
from uml_core.store.corpus_store import MANIFEST, open_filesystem


@dataclass(frozen=True)
class StoredFolder:
    """A folder of the store, and what can be said of it without reading its rows."""

    kind: Literal["embeddings", "run"]
    owner: str  # the corpus, or STEP-HASH
    name: str  # the fingerprint, or the number of the attempt
    path: str  # within the filesystem
    num_bytes: int
    facts: dict[str, Any] | None  # of the manifest or the run's file; None: it has none, or a damaged one
    holder: Holder | None  # who writes it now

    @property
    def lease(self) -> str:
        """The path of the lease of who writes it."""
        if self.kind == "run":
            return f"{self.path}/{LEASE_FILE}"
        return lease_beside(self.path)

    @property
    def is_finished(self) -> bool:
        """Whether it was written to its end."""
        return self.facts is not None and bool(self.facts.get("finished", True))

    @property
    def state(self) -> str:
        """One word, and where it is being written."""
        if self.holder is not None:
            return f"running (process {self.holder.pid} on {self.holder.host})"
        return "finished" if self.is_finished else "unfinished"


def inventory(store: str, corpora: Iterable[str]) -> list[StoredFolder]:
    """Every folder of some corpora and of runs in a store. Raises InputError where the store cannot be opened."""
    filesystem, root = open_filesystem(store)
    found = []
    for corpus in corpora:
        folders = _folders(filesystem, f"{root}/{corpus}")
        found += [_described(filesystem, "embeddings", corpus, info) for info in folders]
    for line in _folders(filesystem, f"{root}/{RUNS_FOLDER}"):
        attempts = sorted(_folders(filesystem, line.path), key=lambda info: (len(info.base_name), info.base_name))
        found += [_described(filesystem, "run", line.base_name, info) for info in attempts]
    return found


def delete(store: str, folder: StoredFolder) -> bool:
    """Delete a folder as its only writer; returns False, and deletes nothing, where another process writes it."""
    filesystem, _ = open_filesystem(store)
    lease = Lease(filesystem, folder.lease)
    if not lease.take(lambda: None, wait_for_living=False):
        return False
    with lease.held():
        filesystem.delete_dir(folder.path)
    return True


def _folders(filesystem: pafs.FileSystem, path: str) -> Iterator[pafs.FileInfo]:
    infos = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return (info for info in infos if info.type == pafs.FileType.Directory)


def _described(
    filesystem: pafs.FileSystem, kind: Literal["embeddings", "run"], owner: str, info: pafs.FileInfo
) -> StoredFolder:
    files = filesystem.get_file_info(pafs.FileSelector(info.path, recursive=True, allow_not_found=True))
    size = sum(file.size or 0 for file in files if file.type == pafs.FileType.File)
    content = read_if_there(filesystem, f"{info.path}/{MANIFEST if kind == 'embeddings' else RUN_FILE}")
    try:
        facts = None if content is None else json.loads(content)
    except ValueError:
        facts = None
    facts = facts if isinstance(facts, dict) else None
    folder = StoredFolder(kind, owner, info.base_name, info.path, size, facts, holder=None)
    return replace(folder, holder=living_holder(filesystem, folder.lease))
