"""What a sweep leaves in MLflow, written by the driver alone: its nested runs, one a trial, its best model, its report.

In: `TrialResult`s, each read once from the sweep's folder as Ray Tune ends its trial. Out: MLflow runs.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Self, TypeVar

from pipelines.places import OutputFolder
from pipelines.progress import stage
from pipelines.report.step import write_report
from pipelines.run_data import build_data
from pipelines.stores import Tables, corpus_store
from pipelines.subset_files import subset_of
from pipelines.timings import timed
from pipelines.tune.folder import SweepFolder, TrialResult, in_order
from uml_core.config import Experiment
from uml_core.evaluation.outcome import save_weights
from uml_core.reporting.collect import collect_sweep
from uml_core.reporting.page import build_report
from uml_core.reporting.tables import sweep_metrics
from uml_core.sweeps.space import TrialSpec
from uml_core.tracking.ended_runs import Addition, EndedRun, add_to_runs, write_runs
from uml_core.tracking.reading import sweep_runs
from uml_core.tracking.records import MetricPoint, RunRecord, metric_points
from uml_core.tracking.uri import without_password
from uml_core.tracking.writing import MLflowTracker, open_experiment
from uml_core.training.run import TrainingRun

Measured = tuple[TrialSpec, Sequence[MetricPoint], Mapping[str, bytes]]
Item = TypeVar("Item")
GATHER_S = 0.5  # trials that end within it are written in one transaction: each of their own halts the driver
BEST_ALIAS = "best"  # of a registered model: what the newest sweep ships at the most shots


class TrialLog:
    """Logs ended trials under the sweep's run in a thread of its own, so that none waits for the database.

    What goes wrong there is raised by what comes next, at the latest by `flush`. A killed sweep loses nothing: its
    folder has the results, and `catch_up` logs them.
    """

    def __init__(
        self, experiment: Experiment, parent_run_id: str, specs: Mapping[str, TrialSpec], provenance: Mapping[str, str]
    ) -> None:
        self._experiment, self._parent = experiment, parent_run_id
        self._specs = specs  # grows while a search proposes
        self._run_ids: dict[str, str] = {}
        self._results: dict[str, TrialResult] = {}
        self._tags = {"uml.selected": "false", **provenance}
        self._writer = ThreadPoolExecutor(1)
        self._ended, self._selected = deque[tuple[TrialSpec, TrialResult]](), deque[Measured]()
        self._writes, self._failed, self._hurry = deque[Future[None]](), False, threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Write what is left; where the sweep has failed, end what is being written alone."""
        self._hurry.set()
        self._writer.shutdown(cancel_futures=kind is not None)
        if kind is None:
            self.flush()

    @stage("log", "writing trials to MLflow")
    def flush(self) -> None:
        """Wait until all is written."""
        self._hurry.set()
        while self._writes:
            self._writes[0].result()  # a failure stays first and is raised each time: Ray Tune swallows it once
            self._writes.popleft()
        self._hurry.clear()

    def _write_later(self) -> None:
        while self._writes and self._writes[0].done():
            self._writes[0].result()
            self._writes.popleft()
        self._writes.append(self._writer.submit(self._write))

    def _write(self) -> None:
        """Write all that waits; not after that has failed: a server that is away would be waited for once more."""
        if self._selected or self._ended:
            self._hurry.wait(GATHER_S)
        selected, ended = _taken(self._selected), _taken(self._ended)  # in this order: what is selected had ended
        if self._failed or not (selected or ended):
            return
        self._failed = True
        tracking = self._experiment.tracking
        ids = write_runs(tracking, self._experiment_id, [self._run_of(*each) for each in ended])
        self._run_ids |= {spec.key: run_id for (spec, _), run_id in zip(ended, ids, strict=True)}
        for spec, _, files in selected:
            if files:
                self.tracker(spec).log_files(files, "evaluation")
        marked = {"uml.selected": "true"}
        add_to_runs(tracking, [Addition(self._run_ids[spec.key], points, marked) for spec, points, _ in selected])
        self._failed = False

    @cached_property
    def _experiment_id(self) -> str:
        return open_experiment(self._experiment.tracking, self._experiment.name)

    @property
    def results(self) -> dict[str, TrialResult]:
        """Every trial's result by its key, in the order in which they ended."""
        return in_order(self._results)

    @timed("log")
    def catch_up(self, results: Mapping[str, TrialResult]) -> None:
        """Find the trials that a killed sweep has logged, and log those that it has results of but did not log."""
        for record in sweep_runs(self._experiment, self._parent)[1:]:
            # One that is still "running" was being logged when the sweep was killed: it is logged again.
            if record.status == "RUNNING":
                MLflowTracker(self._experiment.tracking, record.run_id).discard()
            else:
                self._run_ids[record.tags["uml.trial"]] = record.run_id
        for key, result in results.items():
            if key in self._run_ids:
                self._results[key] = result
            else:
                self.add(key, result)

    def add(self, key: str, result: TrialResult) -> None:
        """Log one ended trial as a nested run."""
        self._results[key] = result
        self._ended.append((self._specs[key], result))
        self._write_later()

    def _run_of(self, spec: TrialSpec, result: TrialResult) -> EndedRun:
        tags = {**self._tags, "uml.arm": spec.arm, "uml.trial": spec.key}
        if result.error:
            tags["uml.error"] = result.error
        if result.stopped:
            tags["uml.stopped"] = "true"
        train_s = max((point.value for point in result.points if point.name == "perf/train_s"), default=0.0)
        ended_at = result.ended_at or time.time()
        cost = [] if result.error else [MetricPoint("perf/samples", result.cost)]
        return EndedRun(
            spec.experiment,
            name=f"{spec.arm} {spec.condition} seed={spec.experiment.seed}".replace("  ", " "),
            kind="trial",
            tags=tags,
            points=[*result.points, *cost],
            status="FAILED" if result.error else "FINISHED",
            started_at=ended_at - train_s,  # MLflow shows how long the trial trained, not how long logging took
            ended_at=ended_at,
            parent_run_id=self._parent,
        )

    def mark_selected(self, spec: TrialSpec, points: Sequence[MetricPoint], files: Mapping[str, bytes]) -> None:
        """Log what was measured of a selected trial; tables and figures under evaluation/, as `evaluate` does."""
        self._selected.append((spec, points, files))
        self._write_later()

    def tracker(self, spec: TrialSpec) -> MLflowTracker:
        """The run of a trial that is written."""
        return MLflowTracker(self._experiment.tracking, self._run_ids[spec.key])


def _taken(waiting: deque[Item]) -> list[Item]:
    """Take all that waits; another thread may add to it meanwhile."""
    return [waiting.popleft() for _ in range(len(waiting))]


@stage("log", "writing the drawn rows to MLflow")
def log_subsets(chosen: Sequence[TrialSpec], tables: Tables, parent: MLflowTracker) -> None:
    """Log which rows were drawn, once for all arms of the same shots and seed: files that data.subset reads."""
    drawn = {(spec.experiment.data.shots, spec.experiment.data.split_seed): spec.experiment for spec in chosen}
    ids = corpus_store(chosen[0].experiment, chosen[0].experiment.target).load_ids()
    files: dict[str, bytes] = {}
    for (shots, seed), experiment in drawn.items():
        text = subset_of(experiment, build_data(experiment, tables), ids)
        files[f"shots-{'all' if shots is None else shots}-seed-{seed}.json"] = text.encode()
    parent.log_files(files, "subsets")


@stage("log", "registering the model")
def register_shipped(
    shipped: Mapping[str, TrialSpec], tables: Tables, folder: SweepFolder, log: TrialLog, *, parent: MLflowTracker
) -> str:
    """Log trials' models on their runs and register them under the experiment's name.

    Args:
        shipped: by alias; the last one is `best` as well.

    Returns:
        models:/NAME@best
    """
    *_, last = shipped
    uri = ""
    for alias, spec in shipped.items():
        tracker, run = log.tracker(spec), TrainingRun(spec.experiment, build_data(spec.experiment, tables))
        run.load_result(folder.read_state(spec.key))
        run.load_best()
        predictor = run.objective.predictor()
        with tempfile.TemporaryDirectory() as directory:
            tracker.log_artifact(save_weights(run.model.state_dict(), Path(directory)), "weights")
            tracker.log_text(without_password(spec.experiment).to_yaml(), "experiment.yaml")
            model_uri = tracker.log_predictor(predictor, Path(directory) / "predictor")
        tags = {"uml.sweep": parent.run_id, "uml.trial": spec.key, "uml.arm": spec.arm}
        for name in (alias, BEST_ALIAS) if alias == last else (alias,):
            uri = tracker.register_model(model_uri, spec.experiment.name, tags=tags, alias=name)
    parent.set_tags({"uml.best_trial": log.tracker(shipped[last]).run_id, "uml.best_model": uri})
    return uri


@stage("draw", "drawing the sweep's page")
def log_summary(parent: MLflowTracker, records: Sequence[RunRecord], tracking_uri: str, *, name: str) -> None:
    """Log a sweep's numbers, its page and its figures on its parent run, from the sweep's own runs."""
    record = next(record for record in records if record.run_id == parent.run_id)
    parent.log_metrics(metric_points(sweep_metrics(collect_sweep(records, record))))
    finished = replace(record, status="FINISHED")  # as it is once this is written
    others = [other for other in records if other is not record]
    page = build_report(name, [finished, *others], tracking_uri=tracking_uri)
    with tempfile.TemporaryDirectory() as directory:
        write_report(page.html, page.figures, OutputFolder("report", directory))
        with timed("log"):
            parent.log_folder(Path(directory), "report")
