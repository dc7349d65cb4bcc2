"""A step's training runs, each from the attempt's folder to the logged outcome; heavy to import.

A head that takes no step is solved here. Everything else runs under Ray Train: workers run
`pipelines.train.worker.train_loop_per_worker`, and Train's controller writes what they report to MLflow.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import psutil
from ray.exceptions import RayActorError
from ray.train import CheckpointConfig, FailureConfig, Result, RunConfig, ScalingConfig
from torch import Tensor

from pipelines.left_out import left_out_tag
from pipelines.ray_session import num_cpus, num_gpus, own_interrupts
from pipelines.ray_train.attempts import Attempt, open_attempt
from pipelines.ray_train.checkpoints import PREDICTOR_FOLDER, load_state, repair
from pipelines.ray_train.elastic import trainer_class
from pipelines.ray_train.faults import MistakeCallback, free_orphans, mistakes_raised
from pipelines.row_sums import add_up_rows
from pipelines.run_data import CheckedData, divergence_message, load_data
from pipelines.stores import corpus_store
from pipelines.subset_files import subset_of
from pipelines.timings import timed
from pipelines.train.progress import MLflowCallback, training_bar
from pipelines.train.worker import train_loop_per_worker
from uml_core.config import Experiment
from uml_core.data.training_data import TrainingData
from uml_core.errors import InputError, OutageError
from uml_core.evaluation.outcome import RunOutcome, evaluation_points, measure_outcome, save_weights
from uml_core.files.paths import one_line
from uml_core.gradients.batch import NonFiniteError
from uml_core.serving.predictor import Predictor
from uml_core.serving.target_predictor import load_predictor_folder
from uml_core.store.counted_table import rest_of
from uml_core.tracking.records import MetricPoint, provenance_tags, run_kind
from uml_core.tracking.writing import MLflowTracker, start_run
from uml_core.training.run import TrainingRun
from uml_core.transfer.start import transfer_plan

MAX_LOSSES = 3  # of workers, and of the controller, in a run

logger = logging.getLogger(__name__)
Conclusion = TypeVar("Conclusion")


@dataclass(frozen=True)
class TrainedModel:
    """What a run has come to: the model that validated best, and what was measured of it."""

    outcome: RunOutcome
    weights: Mapping[str, Tensor]
    predictor: Predictor


def train_in_turn(
    experiments: Sequence[Experiment],
    checked: CheckedData,
    conclude: Callable[[Sequence[RunOutcome]], Conclusion],
) -> Conclusion:
    """Train experiments, one after another, to their ends; resumes where a killed step stopped, in the later ones too.

    `open_experiment()` comes first. All are one step, which ends with what `conclude` makes of the outcomes: the same
    line trains them anew after that.
    """
    attempts: list[Attempt] = []
    outcomes = []
    with contextlib.ExitStack() as held:
        try:
            for experiment in experiments:
                attempts.append(held.enter_context(open_attempt(experiment)))
                outcomes.append(_train_once(experiment, checked, attempts[-1]))
        except InputError as error:
            # An outage of the tracking server, or a folder that is another run's now, leaves the step unfinished.
            if not isinstance(error, OutageError):
                _finish(attempts)
            raise
        conclusion = conclude(outcomes)
        _finish(attempts)
        return conclusion


def _train_once(experiment: Experiment, checked: CheckedData, attempt: Attempt) -> RunOutcome:
    """Train one experiment and log it; where that has been done, return what it came to."""
    if attempt.outcome is not None:
        return RunOutcome(**attempt.outcome)
    checked = checked.for_experiment(experiment)
    tracker = _open_run(experiment, attempt, checked)
    try:
        if experiment.takes_no_step:
            trained = _solve(experiment, checked, tracker)
        else:
            trained = _fit(experiment, checked, attempt, tracker.run_id)
        outcome = _log_outcome(experiment, checked, trained, tracker)
    except InputError as error:
        if not isinstance(error, OutageError):
            tracker.finish("FAILED")
        raise
    tracker.finish()
    attempt.keep(outcome.as_json())
    return outcome


def _finish(attempts: Sequence[Attempt]) -> None:
    for attempt in attempts:
        if attempt.run_id is not None:  # else the user's mistake has kept it from beginning
            attempt.finish()


@timed("log")
def _open_run(experiment: Experiment, attempt: Attempt, checked: CheckedData) -> MLflowTracker:
    if attempt.run_id is not None:
        return MLflowTracker(experiment.tracking, attempt.run_id)
    kind, plan = run_kind(experiment), transfer_plan(experiment)  # weights that do not fit begin no run
    feeds = {"uml.feed": ",".join(f"{corpus}={feed}" for corpus, feed in checked.feeds.items())}
    left_out = left_out_tag(experiment, checked.fingerprints, checked.data.warnings())
    tags = provenance_tags(checked.fingerprints) | feeds | left_out
    tracker = start_run(experiment, name=kind, kind=kind, tags=tags)
    tracker.log_text(experiment.to_yaml(), "experiment.yaml")
    if plan is not None:
        logger.warning("%s Every tensor stands in transfer.md of run %s", plan.notes[0], tracker.run_id)
        tracker.log_text(plan.table(), "transfer.md")
    attempt.begin(tracker.run_id)
    return tracker


@timed("train")
def _solve(experiment: Experiment, checked: CheckedData, tracker: MLflowTracker) -> TrainedModel:
    """Solve a head in this process: a group of workers would take ten seconds to start."""
    sums = add_up_rows(experiment, checked) if "stream" in checked.feeds.values() else {}
    run = TrainingRun(experiment, load_data(experiment, checked.fingerprints, sums))
    if isinstance(run.data, TrainingData):
        for line in run.data.found_in_embeddings:  # which only who reads the rows can see
            logger.warning("%s", line)
    try:
        points = [point for each in run.evaluations() for point in evaluation_points(run, each)]
    except NonFiniteError as error:
        raise InputError(divergence_message(error, experiment, checked.fingerprints)) from None
    started_s = time.time() - psutil.Process().create_time() - run.progress.train_s
    tracker.log_metrics([MetricPoint("perf/time_to_first_step_s", started_s, 0), *points])
    assert run.best is not None, "it was evaluated"
    return TrainedModel(measure_outcome(run), run.best.weights, run.objective.predictor())


@timed("train")
def _fit(experiment: Experiment, checked: CheckedData, attempt: Attempt, run_id: str) -> TrainedModel:
    """Run Ray Train; returns what rank 0 has measured and saved. Raises InputError for what a worker found wrong."""
    settings = experiment.train
    use_gpu = num_gpus() > 0 if settings.use_gpu == "auto" else settings.use_gpu
    fewest, most = settings.min_workers or settings.workers, settings.workers
    _check_workers(fewest, use_gpu=use_gpu, setting="workers" if settings.min_workers is None else "min_workers")
    _check_streaming(experiment, checked)
    sums = add_up_rows(experiment, checked)
    with tempfile.TemporaryDirectory() as folder:
        state_file = Path(folder) / "state.json"
        with training_bar(state_file, f"train {run_kind(experiment)}", experiment.num_steps), mistakes_raised():
            result = _through_losses(
                experiment,
                attempt,
                train_loop_config={
                    "experiment": experiment.model_dump(mode="json"),
                    "fingerprints": dict(checked.fingerprints),
                    "sums": sums,
                    "started_at": psutil.Process().create_time(),
                    "run_dir": attempt.directory,
                },
                scaling_config=ScalingConfig(num_workers=most if fewest == most else (fewest, most), use_gpu=use_gpu),
                run_config=RunConfig(
                    name=attempt.name,
                    storage_path=attempt.storage_path,
                    checkpoint_config=CheckpointConfig(num_to_keep=settings.keep_checkpoints),
                    failure_config=FailureConfig(max_failures=MAX_LOSSES),
                    callbacks=[MLflowCallback(experiment.tracking, run_id, state_file), MistakeCallback()],
                ),
            )
    metrics = result.metrics or {}
    if "input_error" in metrics:
        kept = f"; step {metrics['good_step']} is kept in {result.checkpoint.path}" if "good_step" in metrics else ""
        raise InputError(metrics["input_error"] + kept)
    with result.checkpoint.as_directory() as checkpoint:
        weights = load_state(Path(checkpoint))["best"]["weights"]
        return TrainedModel(
            RunOutcome(**metrics["outcome"]), weights, load_predictor_folder(Path(checkpoint) / PREDICTOR_FOLDER)
        )


def _check_workers(fewest: int, *, use_gpu: bool, setting: str) -> None:
    """Raise InputError where the cluster lacks what the fewest workers need: Ray would wait for ever."""
    kind, most = ("GPU", num_gpus()) if use_gpu else ("CPU", num_cpus())
    if most < fewest:
        otherwise = " or set train.use_gpu=false" if use_gpu else ""
        raise InputError(
            f"train.{setting} is {fewest}, but the cluster has {most} {kind}s, and each worker takes one; lower "
            f"train.{setting}{otherwise}"
        )


def _through_losses(experiment: Experiment, attempt: Attempt, **trainer: Any) -> Result:
    """Run Ray Train to the end. It restarts lost workers itself; where its own controller is lost, it is begun anew."""
    for num_lost in range(MAX_LOSSES + 1):
        repair(attempt.directory, keep=experiment.train.keep_checkpoints)
        try:
            with own_interrupts():
                return trainer_class(trainer["scaling_config"])(train_loop_per_worker, **trainer).fit()
        except RayActorError as error:
            if num_lost == MAX_LOSSES:
                raise
            free_orphans(error.actor_id)
            logger.warning("Ray Train's controller was lost; going on from the last checkpoint (%s)", _cause(error))
    raise AssertionError("the last loss is raised")


def _cause(error: RayActorError) -> str:
    """Why an actor is lost: of one that could not start, the last line of its traceback."""
    lines = str(error).strip().splitlines()
    return lines[-1][:300] if any(line.startswith("  File ") for line in lines) else one_line(error)


def _check_streaming(experiment: Experiment, checked: CheckedData) -> None:
    """Say whether a trained encoder's rows stay in memory. Raises InputError where no CPU is left to read them."""
    if experiment.model.backbone == "frozen":
        return
    from uml_core.feed.pictures import PictureData  # encoders take seconds

    assert isinstance(checked.data, PictureData)
    logger.warning("%s", checked.data.describe(experiment))
    if not checked.data.keep and experiment.train.workers >= num_cpus():
        raise InputError(
            f"train.workers is {experiment.train.workers} on {num_cpus()} CPUs, and {checked.data.noun}s that do not "
            "fit in memory are decoded beside the workers; lower train.workers, or raise pictures.memory_gib"
        )


@timed("log")
def _log_outcome(
    experiment: Experiment, checked: CheckedData, trained: TrainedModel, tracker: MLflowTracker
) -> RunOutcome:
    """Log what was measured of the model that validated best, with its weights and target model."""
    outcome = replace(trained.outcome, run_id=tracker.run_id)
    tracker.log_metrics(outcome.points())
    store = corpus_store(experiment, experiment.target)
    ids = (store if checked.data.labelled.counts is None else rest_of(store)).load_ids()
    tracker.log_text(subset_of(experiment, checked.data, ids), "subset.json")
    with tempfile.TemporaryDirectory() as directory:
        tracker.log_artifact(save_weights(trained.weights, Path(directory)), "weights")
        outcome.model_uri = tracker.log_predictor(trained.predictor, Path(directory) / "predictor")
    return outcome
