"""A sweep's folder: the result and the weights of every ended trial, each written in one rename.

SWEEP/trials/KEY.json and KEY.pt, and KEY.pt comes first: a trial whose JSON exists is complete. The JSON also holds
what the trial was, so that a resumed search knows what it has proposed. KEY.checkpoint is a long trial on its way.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow.fs as pafs
import torch

from uml_core.evaluation.outcome import measure_outcome
from uml_core.files.atomic import read_if_there, write_whole
from uml_core.store.corpus_store import open_filesystem
from uml_core.sweeps.selection import Candidate
from uml_core.tracking.records import MetricPoint
from uml_core.training.run import Evaluation, TrainingRun

OnEvaluation = Callable[[TrainingRun, Evaluation], None]


@dataclass(frozen=True)
class Assignment:
    """A trial as a process of the sweep is told of it: its name, its group, and what it overrides."""

    key: str
    group: tuple[str, str, int]
    overrides: Mapping[str, Any]


def trial_config(assignments: Sequence[Assignment]) -> dict[str, str]:
    """Return the configuration of a Tune trial that trains some of ours at once."""
    return {"trials": json.dumps([asdict(assignment) for assignment in assignments])}


def assignments_of(config: Mapping[str, Any]) -> list[Assignment]:
    """Return our trials in a Tune trial's configuration."""
    return [Assignment(**{**item, "group": tuple(item["group"])}) for item in json.loads(config["trials"])]


@dataclass(frozen=True)
class TrialResult:
    """What a trial hands over: its validation result and the metrics to log; or why it failed."""

    val_accuracy: float
    val_nll: float
    points: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""
    cost: float = 0.0  # samples trained on, of all corpora
    val_rows: int = 0
    stopped: bool = False  # by the scheduler, before it was done: never selected
    overrides: Mapping[str, Any] = field(default_factory=dict)  # what made it of the sweep's experiment
    group: tuple[str, str, int] = ("", "", 0)
    ended_at: float = 0.0  # seconds since 1970

    @classmethod
    def failed(cls, reason: str) -> TrialResult:
        """Return the result of a failed trial."""
        return cls(0.0, float("inf"), error=reason or "unknown error")

    @classmethod
    def cut_short(cls, report: Mapping[str, Any]) -> TrialResult:
        """Return the result of a trial that the scheduler stopped, from what it reported last."""
        step = int(report["step"])
        named = {
            "val/accuracy": report["val_accuracy"],
            "val/nll": report["val_nll"],
            "perf/train_s": report["train_s"],
            "perf/steps": float(step),
        }
        points = [asdict(MetricPoint(name, value, step)) for name, value in named.items()]
        return cls(report["val_accuracy"], report["val_nll"], points, cost=report["cost"], stopped=True)

    @property
    def candidate(self) -> Candidate:
        """What selection looks at."""
        return Candidate(self.val_accuracy, self.val_nll, self.cost, self.val_rows)


class SweepFolder:
    """Where a sweep's trials leave their results; on any pyarrow filesystem."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._fs, self._directory = open_filesystem(uri)

    @property
    def ray_storage(self) -> str:
        """Where Ray Tune keeps its own files."""
        return f"{self.uri}-ray"

    def read(self, key: str) -> TrialResult | None:
        """Return a trial's result, or None while it has not ended."""
        content = read_if_there(self._fs, f"{self._directory}/{key}.json")
        if content is None:
            return None
        record = json.loads(content)
        return TrialResult(**{**record, "group": tuple(record["group"])})

    def all(self) -> dict[str, TrialResult]:
        """Return every result by its trial's key, in the order in which they ended."""
        found = {key: result for key in self.keys() if (result := self.read(key)) is not None}
        return dict(sorted(found.items(), key=lambda item: (item[1].ended_at, item[0])))

    def keys(self) -> set[str]:
        """Return the keys of the trials that have ended, by one listing."""
        listed = self._fs.get_file_info(pafs.FileSelector(self._directory, allow_not_found=True))
        return {info.base_name.removesuffix(".json") for info in listed if info.base_name.endswith(".json")}

    def read_state(self, key: str) -> dict[str, Any]:
        """Return a trial's best weights and progress."""
        return self._read_state(f"{key}.pt")

    def write(self, key: str, result: TrialResult, *, state: dict[str, Any] | None) -> None:
        """Write a trial's state, then its result; its checkpoint goes, and what asked it to stop."""
        if state is not None:
            self._write_state(f"{key}.pt", state)
        self._write(f"{key}.json", json.dumps(asdict(replace(result, ended_at=time.time()))).encode())
        for name in (f"{key}.checkpoint", f"{key}.stop"):
            if self._has(name):
                self._fs.delete_file(f"{self._directory}/{name}")

    def read_checkpoint(self, key: str) -> dict[str, Any] | None:
        """Return what a long trial has saved on its way, or None where it has saved nothing."""
        return self._read_state(f"{key}.checkpoint") if self._has(f"{key}.checkpoint") else None

    def write_checkpoint(self, key: str, state: dict[str, Any]) -> None:
        """Save a long trial on its way, in place of what it saved before."""
        self._write_state(f"{key}.checkpoint", state)

    def ask_to_stop(self, key: str) -> None:
        """Let a trial's workers know that it is to end."""
        self._write(f"{key}.stop", b"")

    def is_asked_to_stop(self, key: str) -> bool:
        """Return whether a trial is to end."""
        return self._has(f"{key}.stop")

    def _has(self, name: str) -> bool:
        return bool(self._fs.get_file_info(f"{self._directory}/{name}").type == pafs.FileType.File)

    def _read_state(self, name: str) -> dict[str, Any]:
        with self._fs.open_input_stream(f"{self._directory}/{name}") as stream:
            state: dict[str, Any] = torch.load(io.BytesIO(stream.read()), map_location="cpu", weights_only=True)
        return state

    def _write_state(self, name: str, state: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self._write(name, buffer.getvalue())

    def _write(self, name: str, content: bytes) -> None:
        write_whole(self._fs, f"{self._directory}/{name}", content)


def finished_result(run: TrainingRun, points: list[MetricPoint]) -> TrialResult:
    """Return the result of a run that has come to its end, with the points of its evaluations."""
    assert run.best is not None
    return TrialResult(
        run.best.val_accuracy,
        run.best.val_nll,
        [asdict(point) for point in (*points, *measure_outcome(run, with_test=False).points())],
        cost=samples_trained_on(run),
        val_rows=len(run.data.val),
    )


def described(result: TrialResult, assignment: Assignment) -> TrialResult:
    """Return a result with what the trial was."""
    return replace(result, overrides=assignment.overrides, group=assignment.group)


def progress_report(run: TrainingRun, evaluation: Evaluation) -> dict[str, float]:
    """Return what a scheduler decides by."""
    return {
        "val_accuracy": evaluation.val_accuracy,
        "val_nll": evaluation.val_nll,
        "cost": samples_trained_on(run),
        "train_s": run.progress.train_s,
        "step": evaluation.step,
    }


def samples_trained_on(run: TrainingRun) -> float:
    """Return the samples of all corpora a run has seen so far: what it costs, whatever the machine."""
    return float(sum(run.progress.samples.values()))
