"""Trials of a sweep whose encoder is trained on several workers: a Tune trial that waits for Ray Train.

Tune reserves nothing for such a trial that a worker needs, and runs no more of them at once than the cluster holds
workers for (`pipelines.tune.lanes`): a trial that runs can always get its workers. Rank 0 writes the sweep's folder.
What a scheduler is to know goes from rank 0 through an actor to the Tune trial, which alone speaks to Tune: Ray's
TuneReportCallback has a second thread speak, and the two block each other where Tune is slow to take a last report.
With train.workers=1 none of this is needed: a Tune trial trains in its own process, whose CPU and share of a GPU Tune
reserves, and that is used again by the next trial (`pipelines.tune.encoder_trial`).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray import tune
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchTrainer
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from pipelines.ray_train.checkpoints import ReportPace
from pipelines.ray_train.faults import MistakeCallback, free_orphans, mistakes_raised
from pipelines.stores import load_tables
from pipelines.tune.encoder_trial import TrialCheckpoints, run_encoder_trial
from pipelines.tune.folder import SweepFolder, TrialResult, assignments_of, described, progress_report
from pipelines.tune.reports import Reports
from uml_core.config import Experiment, parse_experiment
from uml_core.errors import InputError
from uml_core.gradients.ranks import RankContext
from uml_core.training.run import Evaluation, TrainingRun

MAX_RESTARTS = 3  # of a trial's workers
CONTROLLER_ENDS_S = 2.0
LOOKS_EVERY_S = 0.1  # a Tune trial, for a report or the end of its workers


class AskingScheduler(FIFOScheduler):
    """Asks trials to stop where another scheduler would stop them: Ray Train ends its workers, Tune only kills."""

    def __init__(self, scheduler: TrialScheduler, folder: SweepFolder) -> None:
        super().__init__()
        self._scheduler, self._folder = scheduler, folder

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Tell the other scheduler."""
        self._scheduler.on_trial_add(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Tell the other scheduler, and free workers that a trial's process has left behind."""
        self._scheduler.on_trial_error(tune_controller, trial)
        _free_workers()

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Let the other scheduler decide."""
        if self._scheduler.on_trial_result(tune_controller, trial, result) == TrialScheduler.STOP:
            self._folder.ask_to_stop(assignments_of(trial.config)[0].key)
        return str(TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Tell the other scheduler."""
        self._scheduler.on_trial_complete(tune_controller, trial, result)


def train_on_workers(
    config: dict[str, Any], *, experiment: Experiment, fingerprints: Mapping[str, str], folder_uri: str
) -> None:
    """Be a Tune trial whose training Ray Train runs on experiment.train.workers workers."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")  # also where a cluster was started without it
    (assignment,), folder = assignments_of(config), SweepFolder(folder_uri)  # heads alone train in packs
    trial, stops = experiment.override(assignment.overrides), experiment.tune.stopping != "none"
    gpus = experiment.tune.gpus_per_trial / trial.train.workers
    reports = ray.remote(num_cpus=0)(Reports).remote() if stops else None
    trainer = TorchTrainer(
        train_trial_on_worker,
        train_loop_config={
            **{"trial": config, "experiment": trial.model_dump(mode="json"), "fingerprints": dict(fingerprints)},
            **{"folder": folder_uri, "reports": reports},
        },
        scaling_config=ScalingConfig(
            num_workers=trial.train.workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": 1, **({"GPU": gpus} if gpus else {})},
        ),
        run_config=RunConfig(
            name=assignment.key,
            storage_path=f"{folder_uri}-train",
            failure_config=FailureConfig(max_failures=MAX_RESTARTS),
            callbacks=[MistakeCallback()],
        ),
    )
    try:
        with mistakes_raised():
            if reports is None:
                trainer.fit()
            else:
                _fit_and_report(trainer, reports, folder, assignment.key)
    except InputError as error:
        folder.write(assignment.key, described(TrialResult.failed(str(error)), assignment), state=None)
    except Exception:
        _free_workers()
        raise
    result = folder.read(assignment.key)
    assert result is not None, "the workers have written it"
    if not result.stopped:
        last = {"val_accuracy": result.val_accuracy, "val_nll": result.val_nll, "cost": result.cost}
        tune.report({**last, "step": trial.train.max_steps})


def _fit_and_report(trainer: TorchTrainer, reports: Any, folder: SweepFolder, key: str) -> None:
    """Run Ray Train in another thread, and pass its reports on to Tune in this one, until it ends."""
    ended: Future[None] = Future()

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # noqa: BLE001  raised where the end is waited for
            ended.set_exception(error)
        else:
            ended.set_result(None)

    threading.Thread(target=fit, daemon=True).start()  # a process that is to end does not wait for it
    report = reports.take.remote()
    while not ended.done():
        ready, _ = ray.wait([report], timeout=LOOKS_EVERY_S)
        if ready:
            tune.report(ray.get(report))  # returns when the scheduler has seen it
            ray.get(reports.answer.remote(folder.is_asked_to_stop(key)))
            report = reports.take.remote()
    ended.result()


def train_trial_on_worker(config: dict[str, Any]) -> None:
    """Be one Ray Train worker of a trial; rank 0 writes the result."""
    torch.set_num_threads(1)  # it has one CPU; what else runs on this machine has the others
    experiment, context = parse_experiment(config["experiment"]), ray.train.get_context()
    place = RankContext(ray.train.torch.get_device(), context.get_world_rank(), context.get_world_size())
    (assignment,), folder = assignments_of(config["trial"]), SweepFolder(config["folder"])
    reports = config["reports"]

    def report(run: TrainingRun, evaluation: Evaluation) -> None:
        progress = progress_report(run, evaluation)
        if broadcast_from_rank_zero(place.rank == 0 and ray.get(reports.ask.remote(progress))):
            raise StoppedError(progress)

    try:
        result, state = run_encoder_trial(
            experiment,
            load_tables(experiment, config["fingerprints"]),
            TrialCheckpoints(folder, assignment.key, ReportPace.start(experiment.train), is_writer=place.rank == 0),
            place=place,
            on_evaluation=report if reports is not None else None,
        )
    except StoppedError as stopped:
        result, state = TrialResult.cut_short(stopped.progress), None
    if place.rank == 0:
        folder.write(assignment.key, described(result, assignment), state=state)


class StoppedError(Exception):
    """A trial has been asked to stop; `progress` is what it reported last."""

    def __init__(self, progress: Mapping[str, float]) -> None:
        super().__init__("asked to stop")
        self.progress = progress


def _free_workers() -> None:
    time.sleep(CONTROLLER_ENDS_S)  # else a controller about to die might start its workers again
    free_orphans()
