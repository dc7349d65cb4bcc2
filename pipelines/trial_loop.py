"""What runs in a Tune trial's process. A module of its own: the process imports neither MLflow nor the report."""

from __future__ import annotations

from typing import Any

import torch
from ray import tune

from pipelines.stored import Tables
from pipelines.trial_results import SweepFolder, run_trial
from uml_core.config import parse_experiment


def train_trial(config: dict[str, Any], *, tables: Tables, experiments: dict[str, Any], folder_uri: str) -> None:
    """Run one trial: train, write result and weights into the sweep's folder, report that it is done."""
    torch.set_num_threads(1)
    experiment = parse_experiment(experiments[config["key"]])
    result = run_trial(experiment, tables, SweepFolder(folder_uri), config["key"])
    tune.report({"val_accuracy": result.val_accuracy})
