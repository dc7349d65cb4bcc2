"""A sweep's folder: the result and the weights of every trial that has ended, each written in one rename.

SWEEP/trials/KEY.json and KEY.pt, and KEY.pt comes first: a trial whose JSON exists is complete. The JSON also holds
what the trial was, so that a resumed search knows what it has proposed. KEY.checkpoint is a trial that trains an
encoder, on its way.

A number has four forms on its way from a training run to the report:

    MetricPoint              what is measured at a step      uml_core.evaluation.outcome
    TrialResult              a trial's JSON, which the       here
                             driver reads once
    MLflow's metric          what is kept of the sweep       uml_core.tracking.writing
    RunRecord, ArmResults    what verdict and page read      uml_core.tracking.reading, uml_core.reporting.collect
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow.fs as pafs
import torch
from pydantic import ConfigDict, TypeAdapter

from uml_core.files.atomic import read_if_there, write_whole
from uml_core.store.corpus_store import open_filesystem
from uml_core.sweeps.selection import Candidate
from uml_core.sweeps.space import GroupName, TrialSpec
from uml_core.tracking.records import MetricPoint, metric_points


@dataclass(frozen=True)
class Assignment:
    """What a process of the sweep is given of a trial: its name, its group, and what it overrides."""

    key: str
    group: GroupName
    overrides: Mapping[str, Any]

    @classmethod
    def of(cls, spec: TrialSpec) -> Assignment:
        return cls(spec.key, spec.group, spec.overrides)


@dataclass(frozen=True)
class TrialResult:
    """What a trial came to on validation, with the metrics to log; or why it failed."""

    __pydantic_config__ = ConfigDict(ser_json_inf_nan="constants")  # a failed trial's NLL is infinite

    val_accuracy: float
    val_nll: float
    points: list[MetricPoint] = field(default_factory=list)
    error: str = ""
    cost: float = 0.0  # samples trained on, of all corpora
    val_rows: int = 0
    stopped: bool = False  # by the scheduler, before it was done: never selected
    overrides: Mapping[str, Any] = field(default_factory=dict)  # what made it of the sweep's experiment
    group: GroupName = ("", "", 0)
    ended_at: float = 0.0  # seconds since 1970

    @classmethod
    def failed(cls, reason: str) -> TrialResult:
        return cls(0.0, float("inf"), error=reason or "unknown error")

    @classmethod
    def cut_short(cls, report: Mapping[str, Any]) -> TrialResult:
        """Build the result of a trial that the scheduler stopped from its last report (`pipelines.tune.trial`)."""
        named = {
            "val/accuracy": report["val_accuracy"],
            "val/nll": report["val_nll"],
            "perf/train_s": report["train_s"],
            "perf/steps": float(report["step"]),
        }
        points = metric_points(named, int(report["step"]))
        return cls(report["val_accuracy"], report["val_nll"], points, cost=report["cost"], stopped=True)

    @property
    def outcome(self) -> str:
        """One word on how the trial ended."""
        return "failed" if self.error else "stopped" if self.stopped else "finished"

    @property
    def candidate(self) -> Candidate:
        """What selection looks at."""
        return Candidate(self.val_accuracy, self.val_nll, self.cost, self.val_rows)


RESULT_JSON = TypeAdapter(TrialResult)


def in_order(results: Mapping[str, TrialResult]) -> dict[str, TrialResult]:
    """Results in the order in which their trials ended: that of several in one process is not their order."""
    return dict(sorted(results.items(), key=lambda item: (item[1].ended_at, item[0])))


class SweepFolder:
    """Where a sweep's trials leave their results; on any pyarrow filesystem."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._fs, self._directory = open_filesystem(uri)

    def read(self, key: str) -> TrialResult | None:
        """A trial's result, or None while it has not ended."""
        content = read_if_there(self._fs, self._path(f"{key}.json"))
        return None if content is None else RESULT_JSON.validate_json(content)

    def all(self) -> dict[str, TrialResult]:
        """Every result by its trial's key, in the order in which they ended."""
        listed = self._fs.get_file_info(pafs.FileSelector(self._directory, allow_not_found=True))
        keys = [info.base_name.removesuffix(".json") for info in listed if info.base_name.endswith(".json")]
        found = {key: result for key in keys if (result := self.read(key)) is not None}
        return in_order(found)

    def write(self, assignment: Assignment, result: TrialResult, *, state: dict[str, Any] | None) -> TrialResult:
        """Write a trial's state, then its result, which is returned as it is read again; its checkpoint goes."""
        key = assignment.key
        if state is not None:
            self._write_state(f"{key}.pt", state)
        result = replace(result, overrides=assignment.overrides, group=assignment.group, ended_at=time.time())
        write_whole(self._fs, self._path(f"{key}.json"), RESULT_JSON.dump_json(result))
        checkpoint = self._path(f"{key}.checkpoint")
        if self._fs.get_file_info(checkpoint).type == pafs.FileType.File:
            self._fs.delete_file(checkpoint)
        return result

    def read_state(self, key: str) -> dict[str, Any]:
        """A trial's best weights and progress (`TrainingRun.result_state`)."""
        state = self._read_state(f"{key}.pt")
        assert state is not None, f"trial {key} has left no state"
        return state

    def read_checkpoint(self, key: str) -> dict[str, Any] | None:
        """What a trial has saved on its way, or None where it has saved nothing."""
        return self._read_state(f"{key}.checkpoint")

    def write_checkpoint(self, key: str, state: dict[str, Any]) -> None:
        self._write_state(f"{key}.checkpoint", state)

    def _path(self, name: str) -> str:
        return f"{self._directory}/{name}"

    def _read_state(self, name: str) -> dict[str, Any] | None:
        content = read_if_there(self._fs, self._path(name))
        if content is None:
            return None
        # weights_only: whoever can write the store cannot run code in the processes that read it
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return state

    def _write_state(self, name: str, state: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_whole(self._fs, self._path(name), buffer.getvalue())
