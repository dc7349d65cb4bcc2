"""The bar of a training run: Train's controller publishes what is reported, the driver draws it on stderr.

The two are different processes, and the controller's output is not shown. What is published is one small value in
Ray's own key-value store, under the MLflow run's id; the driver looks at it a few times a second.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from types import TracebackType

from ray.experimental import internal_kv
from tqdm import tqdm

NAMESPACE = b"uml"
POLL_S = 0.5
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps{postfix}"


@dataclass(frozen=True)
class TrainingState:
    """What a report says of a run so far: steps done, their mean rate, and the last evaluation."""

    step: int
    steps_per_s: float  # by the clock, evaluations and reports among it: the rest of the run has them as well
    losses: Mapping[str, float]  # of each corpus, since the evaluation before
    val_accuracy: float

    def describe(self, max_steps: int) -> str:
        """Return rate, time left if the run goes on to max_steps, losses and validation accuracy."""
        left_s = (max_steps - self.step) / self.steps_per_s if self.steps_per_s else 0.0
        losses = ", ".join(f"{corpus} {loss:.3g}" for corpus, loss in self.losses.items())
        rate = f"{self.steps_per_s:.3g} steps/s, {timedelta(seconds=round(left_s))} left"
        return f"{rate}, {f'loss {losses}, ' if losses else ''}val {100 * self.val_accuracy:.1f} %"


class StepRate:
    """Steps per second by the clock since this process began to train, from the step at which it did."""

    def __init__(self, first_step: int) -> None:
        self._first_step, self._started = first_step, time.monotonic()

    def at(self, step: int) -> float:
        """Return the mean rate up to a step; 0 where nothing has been trained."""
        return (step - self._first_step) / max(time.monotonic() - self._started, 1e-9)


def publish(run_id: str, state: TrainingState) -> None:
    """Make a run's state known to its driver."""
    internal_kv._internal_kv_put(run_id.encode(), json.dumps(asdict(state)).encode(), namespace=NAMESPACE)


class TrainingBar:
    """Draws a run's published states while it is entered; Ray is running."""

    def __init__(self, run_id: str, description: str, max_steps: int) -> None:
        self._key, self._max_steps = run_id.encode(), max_steps
        self._bar = tqdm(total=max_steps, desc=description, bar_format=BAR, delay=2, file=sys.stderr)
        self._drawn: bytes | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> TrainingBar:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._draw()
        self._bar.close()
        internal_kv._internal_kv_del(self._key, namespace=NAMESPACE)

    def _follow(self) -> None:
        while not self._ended.wait(POLL_S):
            self._draw()

    def _draw(self) -> None:
        published = internal_kv._internal_kv_get(self._key, namespace=NAMESPACE)
        if published is None or published == self._drawn:
            return
        self._drawn = published
        state = TrainingState(**json.loads(published))
        self._bar.set_postfix_str(state.describe(self._max_steps), refresh=False)
        self._bar.update(state.step - self._bar.n)
        self._bar.refresh()
