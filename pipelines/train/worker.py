"""What runs on each Ray Train worker. A module of its own: to begin, a worker imports neither MLflow nor encoders.

In: an experiment and the fingerprints of its corpora. Out: reports of metrics with checkpoints, by wall time; the last
one holds test accuracy and the target model as well. A worker reads its corpora from the store once and indexes into
them; `uml_core.training.run` has the step itself.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint

from pipelines.metrics import StepMetrics
from pipelines.ray_train.checkpoints import PREDICTOR_FOLDER, newest_state, save_state
from pipelines.run_data import divergence_message, load_data
from pipelines.train.bar import TrainingState
from pipelines.train.loop import num_threads, train_and_report
from uml_core.config import parse_experiment
from uml_core.evaluation.outcome import measure_outcome
from uml_core.gradients.batch import NonFiniteError
from uml_core.tracking.records import MetricPoint
from uml_core.training.run import TrainingRun


def train_loop_per_worker(config: dict[str, Any]) -> None:
    """Train on one worker: read the store, iterate the run's evaluations, report by wall time."""
    experiment = parse_experiment(config["experiment"])
    context = ray.train.get_context()
    torch.set_num_threads(num_threads(experiment, context.get_local_world_size()))
    try:
        data = load_data(experiment, config["fingerprints"], config["sums"])
        if experiment.model.backbone != "frozen" and not data.keep:
            from pipelines.train.picture_stream import PictureStream  # encoders take seconds

            data = replace(data, open_stream=PictureStream)
        run = TrainingRun(
            experiment,
            data,
            device=str(ray.train.torch.get_device()),
            rank=context.get_world_rank(),
            world_size=context.get_world_size(),
        )
        state = newest_state(config["run_dir"])
        if state is not None:
            run.load_state_dict(state)
        if run.progress.finished:  # and its process was killed before that was reported
            _report_checkpoint({"points": [], "finished": True}, run.state_dict(), partial(_measured, run))
        train_and_report(run, config["started_at"], partial(_report, run), _recorder(run))
    except NonFiniteError as error:  # on all ranks at once; other mistakes: pipelines.ray_train.faults
        # Retrying would end the same way: hand the message to the driver instead of failing the worker. With a
        # checkpoint, because Train keeps the metrics of a report only if it has one: the last good one, if there is.
        last = newest_state(config["run_dir"])
        good = {} if last is None else {"good_step": last["progress"]["step"]}
        is_first = context.get_world_rank() == 0  # whose metrics Train keeps
        message = divergence_message(error, experiment, config["fingerprints"]) if is_first else str(error)
        _report_checkpoint({"input_error": message, **good}, last or {})


def _recorder(run: TrainingRun) -> Callable[[TrainingState], None]:
    """What records an evaluation, and this worker's share of the steps since the one before or since now."""
    metrics, before = StepMetrics("train", run.experiment.name), deepcopy(run.progress)

    def record(state: TrainingState) -> None:
        nonlocal before
        now, world_size = deepcopy(run.progress), run.ranks.world_size
        wait_s = now.data_wait_s - before.data_wait_s
        metrics.count("uml_steps", now.step - before.step)
        metrics.count("uml_seconds", wait_s, corpus="", stage="wait")
        metrics.count("uml_seconds", now.train_s - before.train_s - wait_s, corpus="", stage="train")
        for corpus, samples in (now.samples - before.samples).items():
            metrics.count("uml_rows", samples / world_size, corpus=corpus)
        for corpus, loss in state.losses.items():
            metrics.set("uml_loss", loss, corpus=corpus)
        metrics.set("uml_val_accuracy", state.val_accuracy)
        before = now

    return record


def _report(run: TrainingRun, points: list[MetricPoint], state: TrainingState) -> None:
    metrics = {"points": points, "step": state.step, "val_accuracy": state.val_accuracy, "state": state}
    finished = run.progress.finished
    finish = partial(_measured, run) if finished else None
    _report_checkpoint({**metrics, "finished": finished}, run.state_dict(), finish)


def _report_checkpoint(
    metrics: dict[str, Any], state: dict[str, Any], finish: Callable[[Path], dict[str, Any]] | None = None
) -> None:
    """Report from this rank; rank 0 adds the checkpoint, and what `finish` adds to its folder and to the metrics."""
    if ray.train.get_context().get_world_rank() != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as directory:
        save_state(state, Path(directory))
        added = {} if finish is None else finish(Path(directory))
        ray.train.report({**metrics, **added}, checkpoint=Checkpoint.from_directory(directory))


def _measured(run: TrainingRun, directory: Path) -> dict[str, Any]:
    """Measure a finished run and save its target model, here where its rows are: the driver has read none.

    Test is measured here, once. The run's state is saved: its weights are the best ones from now on.
    """
    # Of an encoder in shards, a whole copy: else the other ranks would have to encode as well.
    if run.experiment.train.sharding == "full" and run.ranks.world_size > 1:
        result = run.result_state()
        run = TrainingRun(run.experiment, run.data)
        run.load_result(result)
    outcome = measure_outcome(run)
    run.objective.predictor().save(directory / PREDICTOR_FOLDER)
    return {"outcome": outcome.as_json()}
