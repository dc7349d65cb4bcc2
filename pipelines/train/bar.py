"""The bar of a training run on stderr, and what its data has to warn of."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

from pipelines.progress import StepProgress

logger = logging.getLogger(__name__)


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


class TrainingBar:
    """Draws states of a run, one after another, and logs each of their warnings once; closed when it is left."""

    def __init__(self, description: str, max_steps: int) -> None:
        self._shown = StepProgress(f"{description}: up to the first report")
        self._what, self._max_steps, self._step = description, max_steps, -1
        self._warned: set[str] = set()

    def show(self, state: TrainingState) -> None:
        for line in set(state.warnings) - self._warned:
            logger.warning("%s", line)
        self._warned.update(state.warnings)
        if self._step < 0:
            self._step = 0
            self._shown.counts(self._what, self._max_steps, unit="steps", as_told=True)
        self._shown.adds(state.step - self._step, told=state.describe(self._max_steps))
        self._step = state.step

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._shown.__exit__()
