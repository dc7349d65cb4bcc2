"""What a step is doing, in one line on stderr from its first second on: what it waits for, or how far it has counted.

    starting Ray, 3 s
    encoding pictures 412/1168, 139.20 rows/s, 00:05 left

In a log, where stderr is no terminal, a long count is a line twice a minute, and nothing else is written.
"""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import sys
import threading
from collections.abc import Iterator
from functools import partial
from types import TracebackType
from typing import Any

from tqdm import tqdm

from pipelines.timings import timed

logger = logging.getLogger(__name__)

REFRESH_S, LOG_S = 0.5, 30.0
WAITING = "{desc}, {elapsed_s:.0f} s"
TOLD = "{desc} {n_fmt}/{total_fmt}{unit}{postfix}"
COUNTING = "{desc} {n_fmt}/{total_fmt}, {rate_fmt}, {remaining} left"


@contextlib.contextmanager
def stage(name: str, says: str) -> Iterator[None]:
    """A stage of `pipelines.timings` that says what it waits for; of the main thread."""
    with contextlib.ExitStack() as within:
        if threading.current_thread() is threading.main_thread():
            within.enter_context(timed(name))
            within.enter_context(StepProgress(says))
        yield


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Import what takes seconds within, without garbage collections: they take a tenth of it and find nothing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with stage("import", "loading"):
            yield
    finally:
        if was_enabled:
            gc.enable()


class LogLines(io.TextIOBase):
    """What a bar draws over what it drew before, line by line in a log."""

    def write(self, text: str) -> int:
        if said := text.strip():
            print(said, file=sys.stderr)
        return len(text)


_open: list[StepProgress] = []  # the innermost last: it alone is shown


class StepProgress:
    """The line of a step, gone when it is done. `says` and `counts` may follow one another in any order.

    One within another stands in its place meanwhile.
    """

    def __init__(self, waits_for: str) -> None:
        self._ended, self._is_shown = threading.Event(), sys.stderr.isatty()
        if _open:
            _open[-1]._close()
        _open.append(self)
        self.says(waits_for)
        if self._is_shown:
            threading.Thread(target=self._tick, daemon=True).start()

    def says(self, waits_for: str) -> None:
        """Show what is waited for from now on, and for how long."""
        logger.info("%s", waits_for)  # shown under UML_LOG=json
        self._begin({"desc": waits_for, "bar_format": WAITING, "disable": not self._is_shown})

    def counts(self, what: str, total: int | None, *, unit: str = "rows", as_told: bool = False) -> None:
        """Count up to a total (None: not known) from now on, by what `adds` is told, and its words if `as_told`."""
        pauses = {"mininterval": REFRESH_S} if self._is_shown else {"mininterval": LOG_S, "delay": LOG_S}
        self._begin(
            {"desc": what, "total": total, "unit": f" {unit}", "bar_format": TOLD if as_told else COUNTING, **pauses}
        )

    def adds(self, count: int = 1, *, told: str = "") -> None:
        self._bar.set_postfix_str(told, refresh=False)
        self._bar.update(count)

    def __enter__(self) -> StepProgress:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._ended.set()
        self._close()
        _open.remove(self)
        if _open:
            _open[-1]._again()

    def _begin(self, shown: dict[str, Any]) -> None:
        self._close()
        self._anew = partial(tqdm, **shown, leave=False, file=sys.stderr if self._is_shown else LogLines())
        self._bar = self._anew()

    def _again(self) -> None:
        self._bar = self._anew(initial=self._bar.n)

    def _close(self) -> None:
        if hasattr(self, "_bar"):
            self._bar.close()

    def _tick(self) -> None:
        """Let the seconds go by on a terminal, also while nothing is counted."""
        while not self._ended.wait(REFRESH_S):
            self._bar.refresh()
