"""What runs on each Ray Train worker. A module of its own, so that a worker imports neither MLflow nor encoders.

In: an experiment and the fingerprints of its corpora. Out: reports of metrics with checkpoints, by wall time.
A worker reads its corpora from the store once and indexes into them; `uml_core.training.run` has the step itself.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint

from pipelines.ray_train.checkpoints import newest_state, save_state
from pipelines.ray_train.report_pace import ReportPace
from pipelines.run_data import build_data, divergence_message, training_tables
from pipelines.train.bar import StepRate, TrainingState
from uml_core.config import Experiment, parse_experiment
from uml_core.evaluation.outcome import evaluation_points
from uml_core.gradients.batch import NonFiniteError
from uml_core.tracking.records import MetricPoint
from uml_core.training.run import Evaluation, TrainingRun

LARGE_BATCH = 512  # samples per worker from which several threads pay


def train_loop_per_worker(config: dict[str, Any]) -> None:
    """Train on one worker: read the store, iterate the run's evaluations, report by wall time."""
    experiment = parse_experiment(config["experiment"])
    context = ray.train.get_context()
    torch.set_num_threads(_num_threads(experiment, context.get_local_world_size()))
    try:
        run = TrainingRun(
            experiment,
            _streamed(experiment, build_data(experiment, training_tables(experiment, config["fingerprints"]))),
            device=str(ray.train.torch.get_device()),
            rank=context.get_world_rank(),
            world_size=context.get_world_size(),
        )
        state = newest_state(config["run_dir"])
        if state is not None:
            run.load_state_dict(state)
        _report_evaluations(run, config["started_at"])
    except NonFiniteError as error:  # on all ranks at once; other mistakes: pipelines.ray_train.faults
        # Retrying would end the same way: hand the message to the driver instead of failing the worker. With a
        # checkpoint, because Train keeps the metrics of a report only if it has one: the last good one, if there is.
        last = newest_state(config["run_dir"])
        good = {} if last is None else {"good_step": last["progress"]["step"]}
        _report_checkpoint({"input_error": _message(error, experiment, config), **good}, last or {})


def _message(error: NonFiniteError, experiment: Experiment, config: dict[str, Any]) -> str:
    if ray.train.get_context().get_world_rank() == 0:  # whose metrics are kept
        return divergence_message(error, experiment, config["fingerprints"])
    return str(error)


def _streamed(experiment: Experiment, data: Any) -> Any:
    """Return the data with pictures that are not kept in memory read ahead by Ray Data."""
    if experiment.model.backbone == "frozen" or data.keep:
        return data
    from pipelines.train.picture_stream import PictureStream

    return replace(data, open_stream=PictureStream)


def _num_threads(experiment: Experiment, local_workers: int) -> int:
    """Return the worker's threads: one for small batches, whose products are too small to share (measured)."""
    is_head_alone = experiment.objective == "supervised" and experiment.model.backbone == "frozen"
    takes_batches = experiment.optim.name != "lbfgs"  # a solver takes all rows at once
    if is_head_alone and takes_batches and experiment.train.batch_size // experiment.train.workers < LARGE_BATCH:
        return 1
    return max(1, (os.cpu_count() or 1) // local_workers)


def _report_evaluations(run: TrainingRun, started_at: float) -> None:
    """Collect metrics and report them with a checkpoint every so often, the same times on all ranks."""
    if run.progress.finished:  # and its process was killed before it was measured: Train may have lost its list
        _report_checkpoint({"points": []}, run.state_dict())
        return
    # Of workers there may be another number after a loss.
    points = [MetricPoint("perf/workers", run.ranks.world_size, run.progress.step)]
    first, rate = run.progress.step == 0, StepRate(run.progress.step)
    pace = ReportPace.of(run.experiment.train)
    for evaluation in run.evaluations():
        if first:
            # Reached one evaluation after the first step, so that the loop itself need not look at the clock.
            seconds = time.time() - started_at - run.progress.train_s
            points.append(MetricPoint("perf/time_to_first_step_s", seconds, evaluation.step))
            first = False
        points += evaluation_points(run, evaluation)
        if run.progress.finished or any(run.ranks.from_rank_zero(pace.is_due())):  # a report is a barrier
            points.append(MetricPoint("perf/report_share", pace.spent_share, evaluation.step))
            with pace.reporting():
                _report(run, points, evaluation, rate)
            points = []


def _report(run: TrainingRun, points: list[MetricPoint], evaluation: Evaluation, rate: StepRate) -> None:
    state = TrainingState(evaluation.step, rate.at(evaluation.step), evaluation.losses, evaluation.val_accuracy)
    metrics = {"points": points, "step": evaluation.step, "val_accuracy": evaluation.val_accuracy, "state": state}
    _report_checkpoint({**metrics, "finished": run.progress.finished}, run.state_dict())


def _report_checkpoint(metrics: dict[str, Any], state: dict[str, Any]) -> None:
    """Report from this rank; rank 0 adds the checkpoint."""
    if ray.train.get_context().get_world_rank() != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as directory:
        save_state(state, Path(directory))
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(directory))
