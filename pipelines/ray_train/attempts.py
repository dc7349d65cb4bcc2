"""Run folders: which one a killed run goes on in, and when a new one begins.

STORE/_runs/STEP-HASH/N/run.json names the MLflow run and whether it is finished; lease.json beside it (`files.lease`)
who runs it. The same line finds the same HASH; the last attempt is resumed if it is not finished and nobody holds it,
else attempt N + 1 begins. A run.json that was damaged cannot be resumed: its attempt counts as finished.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow.fs as pafs

from pipelines.logs import KNOWN
from uml_core.config import Experiment
from uml_core.files.atomic import read_if_there, write_whole
from uml_core.files.lease import EXPIRE_S, Lease
from uml_core.files.paths import join
from uml_core.store.corpus_store import open_filesystem

RUNS_FOLDER, RUN_FILE, LEASE_FILE = "_runs", "run.json", "lease.json"
RECORD_KEYS = {"run_id", "finished"}

logger = logging.getLogger(__name__)


@dataclass
class Attempt:
    """One run folder. `run_id` is None until `begin`, `outcome` until `keep`.

    What writes raises OutageError where another process has taken the folder over.
    """

    storage_path: str  # what Ray takes as storage_path
    name: str
    run_id: str | None
    outcome: dict[str, Any] | None
    _fs: pafs.FileSystem
    _lease: Lease
    _file: str
    _request: str | None

    @property
    def directory(self) -> str:
        """The run folder: a path or URI."""
        return join(self.storage_path, self.name)

    def request(self) -> str:
        """What the MLflow run is made by; known before it is there, so that a kill in between leaves no second one."""
        if self._request is None:
            self._request = uuid.uuid4().hex
            self._write(finished=False)
        return self._request

    def begin(self, run_id: str) -> None:
        """Name the MLflow run that the folder is of."""
        self.run_id = KNOWN["run_id"] = run_id
        self._write(finished=False)

    def keep(self, outcome: dict[str, Any]) -> None:
        """Keep what the run has come to, as JSON values: a part of a step whose other parts are still to come."""
        self.outcome = outcome
        self._write(finished=False)

    def finish(self) -> None:
        """Mark the run as finished: the same line starts a new one."""
        self._write(finished=True)

    def check(self) -> None:
        """Raise OutageError where another process has taken the folder over."""
        self._lease.check()

    def _write(self, *, finished: bool) -> None:
        self.check()
        record = {"run_id": self.run_id, "finished": finished, "outcome": self.outcome, "request": self._request}
        write_whole(self._fs, self._file, json.dumps(record).encode())


@contextlib.contextmanager
def open_attempt(experiment: Experiment, step: str = "train", key: str | None = None) -> Iterator[Attempt]:
    """Hold the attempt to go on with, or a fresh one; `key` (default: the config's hash) names the folder.

    A process of another host that holds the last attempt is given a minute to show, by renewing its lease, that it
    lives.
    """
    filesystem, root = open_filesystem(experiment.store)
    folder = f"{RUNS_FOLDER}/{step}-{key or experiment.config_hash}"
    storage_path, number = join(experiment.store, folder), _first_number(filesystem, f"{root}/{folder}")
    while True:
        directory = f"{root}/{folder}/{number}"
        lease = Lease(filesystem, f"{directory}/{LEASE_FILE}")
        if lease.take(functools.partial(_say_waiting, directory), wait_for_living=False):
            with lease.held():
                file = f"{directory}/{RUN_FILE}"
                record = _read(filesystem, file) or {"run_id": None, "finished": False}
                if not record["finished"]:  # else it was, while this process waited for it
                    KNOWN.update({"run_id": record["run_id"]} if record["run_id"] else {})
                    known = [record.get(name) for name in ("run_id", "outcome")]
                    yield Attempt(storage_path, str(number), *known, filesystem, lease, file, record.get("request"))
                    return
        number += 1


def _first_number(filesystem: pafs.FileSystem, folder: str) -> int:
    """The last attempt that was begun and is not finished, else a number that is free."""
    infos = filesystem.get_file_info(pafs.FileSelector(folder, allow_not_found=True))
    for number in sorted((int(info.base_name) for info in infos if info.base_name.isdigit()), reverse=True):
        record = _read(filesystem, f"{folder}/{number}/{RUN_FILE}")
        if record is not None:
            return number + 1 if record["finished"] else number
    return 1


def _say_waiting(directory: str) -> None:
    logger.warning(
        "%s is held by a run on another host; waiting up to %.0f s to see whether it lives", directory, EXPIRE_S
    )


def _read(filesystem: pafs.FileSystem, path: str) -> dict[str, Any] | None:
    """What an attempt's file says, None where there is none."""
    content = read_if_there(filesystem, path)
    if content is None:
        return None
    try:
        record = json.loads(content)
    except ValueError:
        record = None
    if isinstance(record, dict) and record.keys() >= RECORD_KEYS:
        return record
    logger.warning("%s is damaged; the run that it names is not resumed", path)
    return {"run_id": None, "finished": True}
