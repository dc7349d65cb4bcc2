"""Tracking: writing runs to MLflow, and reading an experiment back. The only room that imports mlflow.

Only a driver (or Ray Train's controller) builds an `MLflowTracker`: workers and trials hand their numbers over, so a
SQLite file is enough on one machine and workers need no credentials. Credentials come from MLflow's own environment
(MLFLOW_TRACKING_USERNAME and _PASSWORD, or MLFLOW_TRACKING_TOKEN), never from the URI.
"""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read as mlflow is imported: nobody asked to be counted

from uml_core.tracking.reading import download, experiment_runs, find_run, load_predictor, sweep_runs
from uml_core.tracking.target_model import MLflowTargetModel
from uml_core.tracking.writing import MLflowTracker, log_embedding, open_experiment, start_run

__all__ = [
    "MLflowTargetModel",
    "MLflowTracker",
    "download",
    "experiment_runs",
    "find_run",
    "load_predictor",
    "log_embedding",
    "open_experiment",
    "start_run",
    "sweep_runs",
]
