"""Tracking: writing runs to MLflow, and reading an experiment back. The only room that imports mlflow.

Only a driver (or Ray Train's controller) builds an `MLflowTracker`: workers and trials hand their numbers over, so a
SQLite file is enough on one machine and workers need no credentials. Credentials come from MLflow's own environment
(MLFLOW_TRACKING_USERNAME and _PASSWORD, or MLFLOW_TRACKING_TOKEN), never from the URI.

Nothing is handed on here: trial processes import `uml_core.tracking.records`, and must not import mlflow with it.
"""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read as mlflow is imported: nobody asked to be counted
