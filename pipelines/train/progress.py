"""What becomes of a report: metrics in MLflow, written by Ray Train's controller, and the driver's bar on stderr.

The controller is another process than the driver, and what it prints is not shown. It runs on the driver's node, so the
newest state goes through a file there; the bar looks at it a few times a second.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from ray.train import Checkpoint, UserCallback
from tqdm import tqdm

from uml_core.config import TrackingConfig
from uml_core.files.atomic import LOCAL, read_if_there, write_whole

logger = logging.getLogger(__name__)

POLL_S = 0.5
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps{postfix}"


@dataclass(frozen=True)
class TrainingState:
    """What a report says of a run so far: steps done, their mean rate, and the last evaluation."""

    step: int
    steps_per_s: float  # by the clock, evaluations and reports included: the rest of the run has them as well
    losses: Mapping[str, float]  # of each corpus, since the evaluation before
    val_accuracy: float
    warnings: Sequence[str] = ()  # of what only who reads the rows can see

    def describe(self, max_steps: int) -> str:
        left_s = (max_steps - self.step) / self.steps_per_s if self.steps_per_s else 0.0
        losses = ", ".join(f"{corpus} {loss:.3g}" for corpus, loss in self.losses.items())
        rate = f"{self.steps_per_s:.3g} steps/s, {timedelta(seconds=round(left_s))} left"
        return f"{rate}, {f'loss {losses}, ' if losses else ''}val {100 * self.val_accuracy:.1f} %"


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
def training_bar(state_file: Path, description: str, max_steps: int) -> Iterator[None]:
    """Draw what the controller writes, and log each of its warnings once, while this is entered."""
    bar = tqdm(total=max_steps, desc=description, bar_format=BAR, delay=2, file=sys.stderr)
    ended, drawn, warned = threading.Event(), b"", set[str]()

    def draw() -> None:
        nonlocal drawn
        written = read_if_there(LOCAL, str(state_file))
        if written is None or written == drawn:
            return
        drawn, state = written, TrainingState(**json.loads(written))
        for line in set(state.warnings) - warned:
            logger.warning("%s", line)
        warned.update(state.warnings)
        bar.set_postfix_str(state.describe(max_steps), refresh=False)
        bar.update(state.step - bar.n)
        bar.refresh()

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
        bar.close()
