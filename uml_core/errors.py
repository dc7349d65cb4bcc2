"""The one exception that means "the user can mend this", and the nearest-name hint its messages carry.

A step that ends with `InputError` exits with status 2 and prints the message as one line, without a traceback.
Everything else is a fault of ours or of the cluster: status 1, with a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A mistake in what the user gave: the message says what was given, what is allowed and how to mend it.

    It is always one line, also where a name in the user's files holds a line break.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


class OutageError(InputError):
    """A server was away for longer than a step waits: nothing is wrong with the run, and the same line goes on."""


class RowError(ValueError):
    """One row cannot be read; its message becomes the row's reason in rejected.parquet."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def nearest(given: str, allowed: Iterable[str]) -> str:
    """ " (did you mean 'X'?)" for the allowed name closest to `given`, or "" if none is close."""
    matches = difflib.get_close_matches(given, list(allowed), n=1, cutoff=0.6)
    return f" (did you mean '{matches[0]}'?)" if matches else ""


def listing(names: Iterable[str], *, limit: int = 8) -> str:
    """Join names for a one-line message: at most `limit`, then how many more; bytes that are no text are escaped."""
    all_names = list(names)
    shown = ", ".join(all_names[:limit]).encode("utf-8", "backslashreplace").decode()
    return shown if len(all_names) <= limit else f"{shown} and {len(all_names) - limit} more"
