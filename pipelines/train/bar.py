"""The bar of a training run on stderr, and what its data has to warn of."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

from tqdm import tqdm

logger = logging.getLogger(__name__)

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


class TrainingBar:
    """Draws states of a run, one after another, and logs each of their warnings once; closed when it is left."""

    def __init__(self, description: str, max_steps: int) -> None:
        self._bar = tqdm(
            total=max_steps, desc=description, bar_format=BAR, delay=2, file=sys.stderr, disable=max_steps == 0
        )
        self._warned: set[str] = set()

    def show(self, state: TrainingState) -> None:
        for line in set(state.warnings) - self._warned:
            logger.warning("%s", line)
        self._warned.update(state.warnings)
        self._bar.set_postfix_str(state.describe(self._bar.total), refresh=False)
        self._bar.update(state.step - self._bar.n)  # drawn a few times a second at most

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.refresh()
        self._bar.close()
