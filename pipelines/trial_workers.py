"""Trials of a sweep whose encoder is trained on several workers: a Tune trial that waits for Ray Train.

Tune reserves nothing for such a trial that a worker needs, and runs no more of them at once than the cluster holds
workers for (`pipelines.lanes`): a trial that runs can always get its workers. Rank 0 writes the sweep's folder.
With train.workers=1 none of this is needed: a Tune trial trains in its own process, whose CPU and share of a GPU Tune
reserves, and that is used again by the next trial (`pipelines.encoder_trials`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray import tune
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from pipelines.encoder_trials import Seat, TrialCheckpoints, run_encoder_trial
from pipelines.stored import load_tables
from pipelines.trial_results import SweepFolder, described, progress_report
from uml_core.config import Experiment, parse_experiment
from uml_core.training import Evaluation, TrainingRun

MAX_RESTARTS = 3  # of a trial's workers


def train_on_workers(
    config: dict[str, Any], *, experiment: Experiment, fingerprints: Mapping[str, str], folder_uri: str
) -> None:
    """Be a Tune trial whose training Ray Train runs on experiment.train.workers workers."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")  # also where a cluster was started without it
    trial, stops = experiment.override(json.loads(config["overrides"])), experiment.tune.stopping != "none"
    gpus = experiment.tune.gpus_per_trial / trial.train.workers
    TorchTrainer(
        train_trial_on_worker,
        train_loop_config={
            **{"trial": config, "experiment": trial.model_dump(mode="json"), "fingerprints": dict(fingerprints)},
            **{"folder": folder_uri, "reports": stops},
        },
        scaling_config=ScalingConfig(
            num_workers=trial.train.workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": 1, **({"GPU": gpus} if gpus else {})},
        ),
        run_config=RunConfig(
            name=config["key"],
            storage_path=f"{folder_uri}-train",
            failure_config=FailureConfig(max_failures=MAX_RESTARTS),
            callbacks=[TuneReportCallback()] if stops else [],
        ),
    ).fit()
    result = SweepFolder(folder_uri).read(config["key"])
    assert result is not None, "the workers have written it"
    tune.report(
        {"val_accuracy": result.val_accuracy, "val_nll": result.val_nll, "cost": result.cost}
        | {"step": trial.train.max_steps}
    )


def train_trial_on_worker(config: dict[str, Any]) -> None:
    """Be one Ray Train worker of a trial; rank 0 writes the result."""
    torch.set_num_threads(1)  # it has one CPU; what else runs on this machine has the others
    experiment, context = parse_experiment(config["experiment"]), ray.train.get_context()
    seat = Seat(str(ray.train.torch.get_device()), context.get_world_rank(), context.get_world_size())
    trial, folder = config["trial"], SweepFolder(config["folder"])
    checkpoints = TrialCheckpoints(folder, trial["key"], experiment.train.report_every_s, is_writer=seat.rank == 0)
    result, state = run_encoder_trial(
        experiment,
        load_tables(experiment, config["fingerprints"]),
        checkpoints,
        seat=seat,
        on_evaluation=_report_from_worker if config["reports"] else None,
    )
    if seat.rank == 0:
        folder.write(trial["key"], described(result, trial), state=state)


def _report_from_worker(run: TrainingRun, evaluation: Evaluation) -> None:
    ray.train.report(progress_report(run, evaluation))
