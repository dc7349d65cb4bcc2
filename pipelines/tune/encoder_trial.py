"""A trial of a sweep that trains an encoder, in one process; `pipelines.tune.trial_on_workers` has several.

In: the trial's experiment and the sweep's folder. Out: its result and state, as those of a light trial. On the way it
saves a checkpoint in that folder as often as `train` does: a killed sweep goes on with the step, not with the trial.
What a process has listed and decoded of the pictures it keeps for the trials that come after. Pictures that do not fit
in memory are read ahead by threads of its own: actors that decode, as `train` has them, might find no free CPU.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipelines.ray_train.checkpoints import ReportPace
from pipelines.run_data import RawSources, build_data
from pipelines.stores import Tables
from pipelines.tune.folder import OnEvaluation, SweepFolder, TrialResult, finished_result
from uml_core.config import Experiment
from uml_core.errors import InputError
from uml_core.evaluation.outcome import evaluation_points
from uml_core.gradients.batch import NonFiniteError
from uml_core.gradients.ranks import RankContext
from uml_core.tracking.records import MetricPoint
from uml_core.training.run import TrainingRun


@dataclass
class TrialCheckpoints:
    """Saves one trial in the sweep's folder by wall time, and puts a new process back to where the last one was."""

    folder: SweepFolder
    key: str
    pace: ReportPace
    is_writer: bool = True  # one rank writes; all read

    def restore(self, run: TrainingRun) -> list[MetricPoint]:
        """Load what was saved into a fresh run; returns the metrics logged up to there."""
        saved = self.folder.read_checkpoint(self.key)
        if saved is None:
            return []
        run.load_state_dict(saved["run"])
        return [MetricPoint(**point) for point in saved["points"]]

    def save_if_due(self, run: TrainingRun, points: list[MetricPoint]) -> None:
        """Save the run between two evaluations."""
        if self.is_writer and self.pace.is_due():
            with self.pace.reporting():
                state = {"run": run.state_dict(), "points": [asdict(point) for point in points]}
                self.folder.write_checkpoint(self.key, state)


def run_encoder_trial(
    experiment: Experiment,
    tables: Tables,
    checkpoints: TrialCheckpoints,
    *,
    place: RankContext,
    on_evaluation: OnEvaluation | None = None,
) -> tuple[TrialResult, dict[str, Any] | None]:
    """Train one trial from its checkpoint on; returns its result and state, as those of light ones.

    Raises:
        InputError: a mistake of the user's that this rank of several may have found alone: the others wait for it.
    """
    try:
        data = _read_ahead(build_data(experiment, tables, process_sources()))
        run = TrainingRun(experiment, data, device=str(place.device), rank=place.rank, world_size=place.world_size)
        points = checkpoints.restore(run)
        for evaluation in run.evaluations():
            points += evaluation_points(run, evaluation)
            if not run.progress.finished:
                checkpoints.save_if_due(run, points)
                if on_evaluation is not None:
                    on_evaluation(run, evaluation)
    except InputError as error:
        if place.world_size > 1 and not isinstance(error, NonFiniteError):
            raise
        return TrialResult.failed(str(error)), None
    return finished_result(run, points), run.result_state()


@functools.cache
def process_sources() -> RawSources:
    """Return what this process has listed and decoded: Tune runs one trial after another in it."""
    return RawSources()


def _read_ahead(data: Any) -> Any:
    if getattr(data, "keep", True):
        return data
    from uml_core.feed.pictures import ReadAhead  # encoders take seconds

    return replace(data, open_stream=ReadAhead)
