"""What Train's controller does with a report. A module of its own, so that the controller imports little to start."""

from __future__ import annotations

from typing import Any

from ray.train import Checkpoint, UserCallback

from pipelines.train.bar import publish
from uml_core.config import TrackingConfig


class MLflowCallback(UserCallback):
    """Writes what rank 0 reports to the MLflow run and to the driver's bar, from Train's controller."""

    def __init__(self, tracking: TrackingConfig, run_id: str) -> None:
        self._tracking, self._run_id = tracking, run_id

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        """Log the points that were collected since the last report; tell the driver how far the run is."""
        from uml_core.tracking.writing import MLflowTracker  # a second that the first training step need not wait for

        if "state" in metrics[0]:
            publish(self._run_id, metrics[0]["state"])
        MLflowTracker(self._tracking, self._run_id).log_metrics(metrics[0].get("points", []))
