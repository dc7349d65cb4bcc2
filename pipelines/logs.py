"""What a step says on stderr: for people, or under UML_LOG=json as one JSON object a line.

    {"time": "2026-11-30T23:10:04.120Z", "level": "WARNING", "step": "train", "experiment": "pets", "run_id": "6c0f...",
     "job_id": "raysubmit_...", "message": "..."}

`run_id` is MLflow's, `job_id` Ray's; each key is there once it is known. Only what Ray's own C++ writes stays as it is.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

from tqdm.contrib.logging import logging_redirect_tqdm

from uml_core.errors import InputError

KNOWN: dict[str, str] = {}  # of the process: what every line says of the step

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def stderr_of(step: str) -> Iterator[None]:
    """Set up logging, and what else is written to stderr within. Raises InputError for an unknown UML_LOG."""
    form = os.environ.get("UML_LOG") or "text"
    if form not in ("text", "json"):
        raise InputError(f"UML_LOG is {form}; set it to json, or leave it unset for lines that people read")
    if form == "text":
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
        with logging_redirect_tqdm():  # a warning does not break into a line that is being drawn
            yield
        return
    KNOWN["step"] = step
    submitted = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")  # of a job's own process
    if "job_submission_id" in (about := submitted.get("metadata") or {}):
        KNOWN["job_id"] = about["job_submission_id"]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("pipelines").setLevel(logging.INFO)  # what is waited for, and how far it is
    logging.captureWarnings(True)
    with contextlib.redirect_stderr(LoggedLines()) as lines:
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:  # a fault or Ctrl-C, as Python would show it
            logger.critical("%s: %s", type(error).__name__, error, exc_info=True)
            raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 1) from None
        finally:
            lines.write("\n")  # of what has not ended its line


class JsonFormatter(logging.Formatter):
    """A record as a JSON object in one line."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        said = {"time": time, "level": record.levelname, **KNOWN, "message": record.getMessage()}
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        return json.dumps(said, ensure_ascii=False)


class LoggedLines(io.TextIOBase):
    """A stream whose lines are logged: bars, what other packages print, and the error that ends a step."""

    _begun = ""

    def write(self, text: str) -> int:
        *lines, self._begun = re.split("[\r\n]", self._begun + text)
        for line in filter(None, map(str.strip, lines)):
            (logger.error if re.match("(.*: )?error: ", line) else logger.info)("%s", line)
        return len(text)
