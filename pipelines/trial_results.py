"""A sweep's folder: the result and the weights of every ended trial, each written in one rename.

SWEEP/trials/KEY.json and KEY.pt, and KEY.pt comes first: a trial whose JSON exists is complete.
"""

from __future__ import annotations

import io
import json
import uuid
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow.fs as pafs
import torch

from pipelines.stored import Tables, build_data
from uml_core.config import Experiment
from uml_core.errors import InputError
from uml_core.results import evaluation_points, measure_outcome
from uml_core.store import open_filesystem
from uml_core.training import TrainingRun


@dataclass(frozen=True)
class TrialResult:
    """What a trial hands over: its validation result and the metrics to log; or why it failed."""

    val_accuracy: float
    val_nll: float
    points: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""

    @classmethod
    def failed(cls, reason: str) -> TrialResult:
        """Return the result of a failed trial."""
        return cls(0.0, float("inf"), error=reason or "unknown error")


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
        path = f"{self._directory}/{key}.json"
        if self._fs.get_file_info(path).type != pafs.FileType.File:
            return None
        with self._fs.open_input_stream(path) as stream:
            return TrialResult(**json.loads(stream.read()))

    def read_state(self, key: str) -> dict[str, Any]:
        """Return a trial's best weights and progress."""
        with self._fs.open_input_stream(f"{self._directory}/{key}.pt") as stream:
            state: dict[str, Any] = torch.load(io.BytesIO(stream.read()), weights_only=True)
        return state

    def write(self, key: str, result: TrialResult, *, state: dict[str, Any] | None) -> None:
        """Write a trial's state, then its result."""
        if state is not None:
            buffer = io.BytesIO()
            torch.save(state, buffer)
            self._write(f"{key}.pt", buffer.getvalue())
        self._write(f"{key}.json", json.dumps(asdict(result)).encode())

    def _write(self, name: str, content: bytes) -> None:
        self._fs.create_dir(self._directory, recursive=True)
        temporary = f"{self._directory}/tmp-{uuid.uuid4().hex}"
        with self._fs.open_output_stream(temporary) as stream:
            stream.write(content)
        self._fs.move(temporary, f"{self._directory}/{name}")


def run_trial(experiment: Experiment, tables: Tables, folder: SweepFolder, key: str) -> TrialResult:
    """Train one trial and leave its result in the folder; what the user did wrong becomes a failed result."""
    try:
        run = TrainingRun(experiment, build_data(experiment, tables))
        points = [point for evaluation in run.evaluations() for point in evaluation_points(run, evaluation)]
    except InputError as error:
        result = TrialResult.failed(str(error))
        folder.write(key, result, state=None)
        return result
    assert run.best is not None
    points += measure_outcome(run, with_test=False).points()
    result = TrialResult(run.best.val_accuracy, run.best.val_nll, [asdict(point) for point in points])
    folder.write(key, result, state=run.result_state())
    return result
