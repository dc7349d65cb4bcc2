"""A sweep's nested MLflow runs, one a trial, each logged once and from the driver, as Ray Tune ends it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray import tune
from tqdm import tqdm

from pipelines.tune.folder import SweepFolder, TrialResult, assignments_of, described
from pipelines.tune.proposals import Proposals
from uml_core.config import Experiment
from uml_core.sweeps.space import TrialSpec
from uml_core.tracking.reading import sweep_runs
from uml_core.tracking.records import MetricPoint
from uml_core.tracking.writing import MLflowTracker, start_run


class TrialLog:
    """Logs ended trials under the sweep's run, and knows which are logged."""

    def __init__(
        self,
        experiment: Experiment,
        parent_run_id: str,
        specs: Mapping[str, TrialSpec],
        provenance: Mapping[str, str],
    ) -> None:
        self._experiment, self._parent = experiment, parent_run_id
        self._specs = specs  # grows while a search proposes
        self._run_ids: dict[str, str] = {}
        self._tags = {"uml.selected": "false", **provenance}

    def catch_up(self, results: Mapping[str, TrialResult]) -> None:
        """Find the trials a killed sweep logged already, and log those it has results of but did not log."""
        for record in sweep_runs(self._experiment, self._parent)[1:]:
            # One that is still "running" was being logged when the sweep was killed: it is logged again.
            if record.status == "RUNNING":
                MLflowTracker(self._experiment.tracking, record.run_id).discard()
            else:
                self._run_ids[record.tags["uml.trial"]] = record.run_id
        for key, result in results.items():
            if key not in self._run_ids:
                self.add(key, result)

    def add(self, key: str, result: TrialResult) -> None:
        """Log one ended trial as a nested run."""
        spec = self._specs[key]
        tags = {**self._tags, "uml.arm": spec.arm, "uml.trial": key}
        if result.error:
            tags["uml.error"] = result.error
        if result.stopped:
            tags["uml.stopped"] = "true"
        name = f"{spec.arm} {spec.condition} seed={spec.experiment.seed}".replace("  ", " ")
        points = [MetricPoint(**point) for point in result.points]
        train_s = max((point.value for point in points if point.name == "perf/train_s"), default=0.0)
        ended_at = result.ended_at or time.time()
        tracker = start_run(
            spec.experiment,
            name=name,
            kind="trial",
            tags=tags,
            parent_run_id=self._parent,
            started_at=ended_at - train_s,  # MLflow shows how long the trial trained, not how long logging took
        )
        cost = [] if result.error else [MetricPoint("perf/samples", result.cost)]
        tracker.log_metrics([*points, *cost])
        tracker.finish("FAILED" if result.error else "FINISHED", ended_at=ended_at)
        self._run_ids[key] = tracker.run_id

    def mark_selected(self, spec: TrialSpec, points: Sequence[MetricPoint], files: Mapping[str, bytes]) -> None:
        """Log what was measured of a selected trial; tables and figures under evaluation/, as `evaluate` does."""
        tracker = self.tracker(spec)
        tracker.log_metrics(points)
        tracker.log_files(files, "evaluation")
        tracker.set_tags({"uml.selected": "true"})

    def mark_pareto(self, spec: TrialSpec) -> None:
        """Mark a trial that no other of its group beats in accuracy and cost."""
        self.tracker(spec).set_tags({"uml.pareto": "true"})

    def tracker(self, spec: TrialSpec) -> MLflowTracker:
        """Return the tracker of a logged trial's run."""
        return MLflowTracker(self._experiment.tracking, self._run_ids[spec.key])


class TrialCallback(tune.Callback):
    """Logs a trial to MLflow as it ends, from the driver, tells the search, and moves the progress bar."""

    def __init__(self, proposals: Proposals, log: TrialLog, folder: SweepFolder, bar: tqdm) -> None:
        self._proposals, self._log, self._folder, self._bar = proposals, log, folder, bar

    def __getstate__(self) -> dict[str, Any]:
        """Leave nothing for Tune to store beside the sweep: our folder is what a sweep resumes from."""
        return {}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Log results from the sweep's folder; a trial that the scheduler stopped has left none there."""
        self._take(trial, lambda: TrialResult.cut_short(trial.last_result))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record the trials of a process that died or raised, but for those that had ended; the sweep goes on."""
        text = str(getattr(trial, "get_pickled_error", lambda: None)() or "the trial's process died")
        reason = text.strip().splitlines()[-1][:500]
        self._take(trial, lambda: TrialResult.failed(reason))

    def _take(self, trial: Any, otherwise: Callable[[], TrialResult]) -> None:
        """Log the trials of a Tune trial; one that left no result is given another, which is written for it."""
        for assignment in assignments_of(trial.config):
            result = self._folder.read(assignment.key)
            if result is None:
                result = described(otherwise(), assignment)
                self._folder.write(assignment.key, result, state=None)
            self._proposals.tell(assignment.key, result)
            self._log.add(assignment.key, result)
            self._bar.update()
