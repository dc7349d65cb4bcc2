"""What runs in a Tune trial's process. A module of its own: the process imports neither MLflow nor the report."""

from __future__ import annotations

import json
from typing import Any

import torch
from ray import tune

from pipelines.encoder_trials import Seat, TrialCheckpoints, run_encoder_trial
from pipelines.stored import Tables
from pipelines.trial_results import SweepFolder, described, progress_report, run_trial
from uml_core.config import Experiment
from uml_core.training import Evaluation, TrainingRun


def train_trial(config: dict[str, Any], *, tables: Tables, experiment: Experiment, folder_uri: str) -> None:
    """Run one trial: train, write result and weights into the sweep's folder, report that it is done."""
    torch.set_num_threads(1)
    overrides, folder = json.loads(config["overrides"]), SweepFolder(folder_uri)
    trial = experiment.override(overrides)
    device = "cuda" if experiment.tune.gpus_per_trial else "cpu"
    on_evaluation = None if experiment.tune.stopping == "none" else _report
    if trial.model.backbone == "frozen":
        result, state = run_trial(trial, tables, device=device, on_evaluation=on_evaluation)
    else:
        checkpoints = TrialCheckpoints(folder, config["key"], trial.train.report_every_s)
        result, state = run_encoder_trial(trial, tables, checkpoints, seat=Seat(device), on_evaluation=on_evaluation)
    folder.write(config["key"], described(result, config), state=state)
    last_step = experiment.train.max_steps
    tune.report(
        {"val_accuracy": result.val_accuracy, "val_nll": result.val_nll, "cost": result.cost, "step": last_step}
    )


def _report(run: TrainingRun, evaluation: Evaluation) -> None:
    """Tell the scheduler how a trial does; where it stops the trial, this call does not return."""
    tune.report(progress_report(run, evaluation))
