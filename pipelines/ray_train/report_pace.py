"""How often a run reports or saves: by wall time, and so seldom that it costs no more than a share of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from uml_core.config import TrainConfig


@dataclass
class ReportPace:
    """Says when the next report is due: a large encoder's takes seconds, and one every few seconds would be training's.

    `share` is of wall time, in (0, 1]: after a report that took so long, the next waits until it is no more than that.
    """

    every_s: float
    share: float
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._began = self._last = self.clock()
        self._cost_s = self._spent_s = 0.0

    @classmethod
    def of(cls, settings: TrainConfig) -> ReportPace:
        """Return the pace of a run that begins now."""
        return cls(settings.report_every_s, settings.report_share)

    def is_due(self) -> bool:
        """Return whether a report may be made now."""
        return self.clock() - self._last >= max(self.every_s, self._cost_s * (1 / self.share - 1))

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """Time a report."""
        started = self.clock()
        yield
        self._last = self.clock()
        self._cost_s = self._last - started
        self._spent_s += self._cost_s

    @property
    def spent_share(self) -> float:
        """The share of the time since the run began that its reports have taken."""
        elapsed_s = self.clock() - self._began
        return self._spent_s / elapsed_s if elapsed_s > 0 else 0.0
