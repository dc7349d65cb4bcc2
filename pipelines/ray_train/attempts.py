"""Run folders: which one a killed run goes on in, and when a new one begins.

STORE/_runs/STEP-HASH/N/run.json names the MLflow run, its owner and whether it is finished. The same line finds the
same HASH; the last attempt is resumed if it is not finished and its owner is gone, else attempt N + 1 begins. The file
is written in one rename. One that was damaged since cannot be resumed: its attempt counts as finished.
"""

from __future__ import annotations

import json
import logging
import socket
from dataclasses import dataclass
from typing import Any

import psutil
import pyarrow.fs as pafs

from uml_core.config import Experiment
from uml_core.files.atomic import read_if_there, write_whole
from uml_core.store.corpus_store import open_filesystem

RUN_FILE = "run.json"
RECORD_KEYS = {"run_id", "finished", "host", "pid"}
SAME_START_S = 2.0  # two readings of when a process started may differ by a step of the clock

logger = logging.getLogger(__name__)


@dataclass
class Attempt:
    """One run folder. `run_id` is None until `begin`, `outcome` until `keep`."""

    storage_path: str  # what Ray takes as storage_path
    name: str
    run_id: str | None
    _fs: pafs.FileSystem
    _directory: str
    outcome: dict[str, Any] | None = None

    @property
    def directory(self) -> str:
        """The run folder: a path or URI."""
        return f"{self.storage_path}/{self.name}"

    def begin(self, run_id: str) -> None:
        """Claim the folder for an MLflow run."""
        self.run_id = run_id
        self._write(finished=False)

    def keep(self, outcome: dict[str, Any]) -> None:
        """Keep what the run has come to, as JSON values: a part of a step whose other parts are still to come."""
        self.outcome = outcome
        self._write(finished=False)

    def finish(self) -> None:
        """Mark the run as finished: the same line starts a new one."""
        self._write(finished=True)

    def _write(self, *, finished: bool) -> None:
        record = {"run_id": self.run_id, "finished": finished, "outcome": self.outcome, **_owner()}
        write_whole(self._fs, f"{self._directory}/{RUN_FILE}", json.dumps(record).encode())


def open_attempt(experiment: Experiment, step: str = "train", key: str | None = None) -> Attempt:
    """Return the attempt to go on with, or a fresh one; `key` (default: the config's hash) names the folder."""
    filesystem, root = open_filesystem(experiment.store)
    folder = f"_runs/{step}-{key or experiment.config_hash}"
    number, last = 0, None
    while (record := _read(filesystem, f"{root}/{folder}/{number + 1}/{RUN_FILE}")) is not None:
        number, last = number + 1, record
    if last is not None and not last["finished"] and not _owner_lives(last):
        run_id, outcome = last["run_id"], last.get("outcome")
    else:
        number, run_id, outcome = number + 1, None, None
    storage_path, directory = f"{experiment.store}/{folder}", f"{root}/{folder}/{number}"
    attempt = Attempt(storage_path, str(number), run_id, filesystem, directory, outcome)
    if run_id is not None:
        attempt.begin(run_id)  # the new owner
    return attempt


def _read(filesystem: pafs.FileSystem, path: str) -> dict[str, Any] | None:
    """Return what an attempt's file says, None where there is none."""
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


def _owner() -> dict[str, Any]:
    process = psutil.Process()
    return {"host": socket.gethostname(), "pid": process.pid, "started_at": process.create_time()}


def _owner_lives(record: dict[str, Any]) -> bool:
    """Return whether another living process of this host holds the attempt; other hosts' runs count as gone.

    A process that has the owner's number and started at another time is not the owner.
    """
    ours = _owner()
    if record["host"] != ours["host"] or record["pid"] == ours["pid"]:
        return False
    try:
        process = psutil.Process(record["pid"])
        if process.status() == psutil.STATUS_ZOMBIE:  # it has ended, and no one has asked how
            return False
        started_at = process.create_time()
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
    return abs(started_at - record.get("started_at", started_at)) <= SAME_START_S
