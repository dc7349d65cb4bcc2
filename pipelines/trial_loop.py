"""What runs in a Tune trial's process. A module of its own: the process imports neither MLflow nor the report."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import torch
from ray import tune

from pipelines.stored import Tables
from pipelines.trial_results import SweepFolder, run_trial, samples_trained_on
from uml_core.config import Experiment
from uml_core.training import Evaluation, TrainingRun


def train_trial(config: dict[str, Any], *, tables: Tables, experiment: Experiment, folder_uri: str) -> None:
    """Run one trial: train, write result and weights into the sweep's folder, report that it is done."""
    torch.set_num_threads(1)
    overrides = json.loads(config["overrides"])
    result, state = run_trial(
        experiment.override(overrides),
        tables,
        device="cuda" if experiment.tune.gpus_per_trial else "cpu",
        on_evaluation=None if experiment.tune.stopping == "none" else _report,
    )
    result = replace(result, overrides=overrides, group=tuple(json.loads(config["group"])))
    SweepFolder(folder_uri).write(config["key"], result, state=state)
    last_step = experiment.train.max_steps
    tune.report(
        {"val_accuracy": result.val_accuracy, "val_nll": result.val_nll, "cost": result.cost, "step": last_step}
    )


def _report(run: TrainingRun, evaluation: Evaluation) -> None:
    """Tell the scheduler how a trial does; where it stops the trial, this call does not return."""
    tune.report(
        {
            "val_accuracy": evaluation.val_accuracy,
            "val_nll": evaluation.val_nll,
            "cost": samples_trained_on(run),
            "train_s": run.progress.train_s,
            "step": evaluation.step,
        }
    )
