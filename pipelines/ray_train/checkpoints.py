"""Checkpoints of a training run: how often, written with a digest, and found again whatever was killed when.

RUN_FOLDER/checkpoint_TIME/ holds state.pt and state.json with its step and digest. A folder that a killed process left
half-written lacks one of them, or the digest does not fit: it is passed over for the one before it. Ray Train keeps a
list of its own beside them, which it writes in place; a torn one is removed, and the folders are found without it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import torch

from uml_core.config import TrainConfig
from uml_core.files.atomic import read_if_there
from uml_core.files.outages import named
from uml_core.store.corpus_store import open_filesystem

logger = logging.getLogger(__name__)

STATE_FILE, FACTS_FILE = "state.pt", "state.json"
PREDICTOR_FOLDER = "predictor"  # the target model, in a finished run's last checkpoint
FOLDER_PREFIX = "checkpoint_"
TRAIN_LIST = "checkpoint_manager_snapshot.json"  # Ray Train's list of the checkpoints it keeps


class DamagedCheckpointError(ValueError):
    """A checkpoint is incomplete, or not what was written."""


@dataclass
class ReportPace:
    """Says when the next report is due: a large encoder's takes seconds, and costs training as many.

    `share` is of wall time, in (0, 1]: after a report that took so long, the next waits until it is no more than that.
    """

    every_s: float
    share: float
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._began = self._last = self.clock()
        self._cost_s = self._spent_s = 0.0

    @classmethod
    def start(cls, settings: TrainConfig) -> ReportPace:
        return cls(settings.report_every_s, settings.report_share)

    def is_due(self) -> bool:
        return self.clock() - self._last >= max(self.every_s, self._cost_s * (1 / self.share - 1))

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """Time a report."""
        started = self.clock()
        yield
        self._last = self.clock()
        self._cost_s = self._last - started
        self._spent_s += self._cost_s

    @property
    def spent_share(self) -> float:
        """The share of the time since the run began that its reports have taken."""
        elapsed_s = self.clock() - self._began
        return self._spent_s / elapsed_s if elapsed_s > 0 else 0.0


def save_state(state: Mapping[str, Any], directory: Path) -> None:
    with named(str(directory)), (directory / STATE_FILE).open("wb") as file:
        torch.save(state, file)  # given the name, torch does not say that the disk is full
    step = state["progress"]["step"] if state else 0
    facts = {"step": step, "sha256": _digest(directory / STATE_FILE)}
    (directory / FACTS_FILE).write_text(json.dumps(facts), encoding="utf-8")


def load_state(directory: Path) -> dict[str, Any]:
    """Read a training state from a checkpoint's folder. Raises DamagedCheckpointError where it is not whole."""
    check(directory)
    state: dict[str, Any] = torch.load(directory / STATE_FILE, map_location="cpu", weights_only=True)
    return state


def check(directory: Path) -> int:
    """The step of a checkpoint. Raises DamagedCheckpointError where it is not whole."""
    try:
        facts = json.loads((directory / FACTS_FILE).read_text(encoding="utf-8"))
        step, expected, digest = int(facts["step"]), facts["sha256"], _digest(directory / STATE_FILE)
    except (OSError, ValueError, KeyError) as error:
        raise DamagedCheckpointError(f"it was not written to its end ({error})") from error
    if digest != expected:
        raise DamagedCheckpointError(f"its {STATE_FILE} is not what was written")
    return step


def newest_state(run_dir: str) -> dict[str, Any] | None:
    """The state of a run's newest whole checkpoint, None where there is none, or none that holds a state."""
    filesystem, _ = open_filesystem(run_dir)
    whole = _oldest_first(_whole(run_dir))
    if not whole:
        return None
    with _opened(filesystem, whole[-1]) as directory:
        return load_state(directory) or None  # empty: a run that ended before its first good step


class CheckpointWriter:
    """Writes a run's checkpoints where no Ray Train does: in the same folders, so that either goes on from them.

    `newest` is the path of the last one, and its step.
    """

    def __init__(self, run_dir: str, *, keep: int) -> None:
        self._filesystem, self._root = open_filesystem(run_dir)
        repair(run_dir, keep=keep)
        self._steps, self._keep = _whole(run_dir), keep

    @property
    def newest(self) -> tuple[str, int] | None:
        return max(self._steps.items(), key=lambda item: (item[1], item[0]), default=None)

    def write(self, state: Mapping[str, Any]) -> None:
        path = f"{self._root}/{FOLDER_PREFIX}{datetime.now():%Y-%m-%d_%H-%M-%S.%f}"
        self._filesystem.create_dir(path)
        with tempfile.TemporaryDirectory() as directory, named(path):
            save_state(state, Path(directory))
            pafs.copy_files(directory, path, destination_filesystem=self._filesystem)
        self._steps[path] = state["progress"]["step"]
        for old in _oldest_first(self._steps)[: -self._keep]:
            self._filesystem.delete_dir(old)
            del self._steps[old]


def repair(run_dir: str, *, keep: int) -> None:
    """Make a killed run's folder one that Ray Train goes on from; no worker of the run lives.

    Damaged checkpoints are removed, with a warning; a list of Train's that is torn or names what is gone is removed;
    of the checkpoints that such a list named, the newest are kept.
    """
    filesystem, root = open_filesystem(run_dir)
    whole = _whole(run_dir)
    for path in _folders(run_dir):
        if path not in whole:
            filesystem.delete_dir(path)
    listed = _listed(filesystem, f"{root}/{TRAIN_LIST}")
    if listed is None or not listed <= {Path(path).name for path in whole}:
        with contextlib.suppress(FileNotFoundError):
            filesystem.delete_file(f"{root}/{TRAIN_LIST}")
        listed = set()
    for path in _oldest_first(whole)[:-keep]:
        if Path(path).name not in listed:
            filesystem.delete_dir(path)


def _whole(run_dir: str) -> dict[str, int]:
    """The step of every whole checkpoint by its path; a warning names the others."""
    filesystem, _ = open_filesystem(run_dir)
    whole = {}
    for path in _folders(run_dir):
        try:
            with _opened(filesystem, path) as directory:
                whole[path] = check(directory)
        except DamagedCheckpointError as error:
            logger.warning("checkpoint %s is passed over for the one before it: %s", path, error)
    return whole


def _oldest_first(steps: Mapping[str, int]) -> list[str]:
    return sorted(steps, key=lambda path: (steps[path], path))


@contextlib.contextmanager
def _opened(filesystem: pafs.FileSystem, path: str) -> Iterator[Path]:
    """A checkpoint's folder on this machine."""
    from ray.train import Checkpoint  # a second, for runs that go on

    with Checkpoint(path, filesystem).as_directory() as directory:
        yield Path(directory)


def _folders(run_dir: str) -> list[str]:
    filesystem, root = open_filesystem(run_dir)
    entries = filesystem.get_file_info(pafs.FileSelector(root, allow_not_found=True))
    folders = [info for info in entries if info.type == pafs.FileType.Directory]
    return [info.path for info in folders if info.base_name.startswith(FOLDER_PREFIX)]


def _listed(filesystem: pafs.FileSystem, path: str) -> set[str] | None:
    """The folders that Train's list names, None where there is no list, it is torn, or of another version."""
    content = read_if_there(filesystem, path)
    if content is None:
        return None
    try:
        listed = json.loads(content)
        names = {result["checkpoint_dir_name"] for result in listed["checkpoint_results"]}
    except (ValueError, KeyError):
        return None
    return names if listed["ray_version"] == version("ray") else None


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
