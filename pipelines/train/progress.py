"""What becomes of a worker's report: metrics in MLflow, written by Ray Train's controller, and the driver's bar.

The controller is another process than the driver, and what it prints is not shown. It runs on the driver's node, so the
newest state goes through a file there; the bar looks at it a few times a second.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray.train import Checkpoint, UserCallback

from pipelines.train.bar import TrainingBar, TrainingState
from uml_core.config import TrackingConfig
from uml_core.files.atomic import LOCAL, read_if_there, write_whole

POLL_S = 0.5


class MLflowCallback(UserCallback):
    """Writes what rank 0 reports to the MLflow run, and its state to the bar's file; runs in Train's controller."""

    def __init__(self, tracking: TrackingConfig, run_id: str, state_file: Path) -> None:
        self._tracking, self._run_id, self._state_file = tracking, run_id, state_file

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        """Log the points that were collected since the last report; tell the driver how far the run is."""
        from uml_core.tracking.writing import MLflowTracker  # a second that the first training step need not wait for

        if "state" in metrics[0]:
            write_whole(LOCAL, str(self._state_file), json.dumps(asdict(metrics[0]["state"])).encode())
        MLflowTracker(self._tracking, self._run_id).log_metrics(metrics[0].get("points", []))


@contextlib.contextmanager
def followed(state_file: Path, bar: TrainingBar) -> Iterator[None]:
    """Let the bar show what the controller writes, while this is entered."""
    ended, drawn = threading.Event(), b""

    def draw() -> None:
        nonlocal drawn
        written = read_if_there(LOCAL, str(state_file))
        if written is not None and written != drawn:
            drawn = written
            bar.show(TrainingState(**json.loads(written)))

    def follow() -> None:
        while not ended.wait(POLL_S):
            draw()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        draw()
