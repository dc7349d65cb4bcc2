"""Waiting for something that went away: bounded retries with backoff, and a line that says what is waited for."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 15.0


def with_patience(
    operation: Callable[[], T], *, what: str, is_temporary: Callable[[Exception], bool], max_wait_s: float
) -> T:
    """Return what the operation returns, repeating it while it fails temporarily: after 0.5 s, 1 s, ... 15 s.

    Args:
        operation: what to do; it may be done twice, so it must be safe to repeat.
        what: what is waited for, in the line that is logged at every attempt.
        is_temporary: tells an outage from a mistake; mistakes are raised at once.
        max_wait_s: seconds of outage after which the last failure is raised.
    """
    started, wait_s = time.monotonic(), FIRST_WAIT_S
    while True:
        try:
            result = operation()
        except Exception as error:
            waited_s = time.monotonic() - started
            if not is_temporary(error) or waited_s >= max_wait_s:
                raise
            logger.warning("%s does not answer; waiting (%.0f s of at most %.0f s)", what, waited_s, max_wait_s)
            time.sleep(min(wait_s, max_wait_s - waited_s))
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
        else:
            if wait_s > FIRST_WAIT_S:
                logger.warning("%s answers again after %.0f s", what, time.monotonic() - started)
            return result
