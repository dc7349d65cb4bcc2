"""MLflow's client, patient: every call to a tracking server goes through it, and waits for a server that went away.

MLflow's own retries are counted, not timed, and silent: nobody would know why a step stands still, or for how long.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # two small files do not need one
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # PatientClient waits instead, and says so

from uml_core.errors import InputError, OutageError
from uml_core.tracking.uri import without_credentials

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient  # importing MLflow takes 1.5 s, and a SQLite file is read without it

MAX_OUTAGE_S = 600.0  # a tracking server may be away for so long before a step gives up
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 15.0

logger = logging.getLogger(__name__)


class PatientClient:
    """MLflow's client, whose calls wait for a server that went away: nothing else retries tracking.

    Calls are safe to repeat: MLflow keeps equal values of tags, parameters and metrics once.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri

    @cached_property
    def plain(self) -> MlflowClient:
        return mlflow_client(self._uri)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """The client's method of that name, made patient."""
        method = getattr(self.plain, name)
        return lambda *given, **named: self.patiently(lambda: method(*given, **named))

    def patiently(self, operation: Callable[[], Any]) -> Any:
        """What an operation on the server returns, repeating it in an outage: after 0.5 s, 1 s, ... 15 s.

        It must be safe to repeat. A mistake that it raises is raised at once; raises OutageError where the server has
        been away for MAX_OUTAGE_S.
        """
        shown = f"tracking.uri {without_credentials(self._uri)}"
        started, wait_s = time.monotonic(), FIRST_WAIT_S
        while True:
            try:
                result = operation()
            except Exception as error:
                if "error code 401" in str(error) or "error code 403" in str(error):
                    raise InputError(
                        f"{shown} does not let this user in; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD "
                        "(or MLFLOW_TRACKING_TOKEN) to those of one who may write"
                    ) from None
                if not is_outage(error):
                    raise
                waited_s, said = time.monotonic() - started, _of_sqlite(error)
                why = f" ({said})" if said else ""
                if waited_s >= MAX_OUTAGE_S:
                    raise OutageError(
                        f"{shown} did not answer for {MAX_OUTAGE_S:.0f} s{why}; start it again and run the same line, "
                        "which goes on where this run stopped"
                    ) from error
                logger.warning(
                    "%s does not answer%s; waiting (%.0f s of at most %.0f s)", shown, why, waited_s, MAX_OUTAGE_S
                )
                time.sleep(min(wait_s, MAX_OUTAGE_S - waited_s))
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
            else:
                if wait_s > FIRST_WAIT_S:
                    logger.warning("%s answers again after %.0f s", shown, time.monotonic() - started)
                return result


def mlflow_client(uri: str) -> MlflowClient:
    """MLflow's client. Raises InputError where a database's driver is not installed."""
    from mlflow.tracking import MlflowClient

    try:
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    except ModuleNotFoundError as error:
        package = {"psycopg": "psycopg[binary]"}.get(error.name or "", error.name)
        raise InputError(
            f"tracking.uri {without_credentials(uri)} needs package {package}, which is not installed: "
            f'pip install "{package}"'
        ) from None


def is_outage(error: Exception) -> bool:
    """Whether an error says that the server, or its database, is away for now."""
    if (of_file := _of_sqlite(error)) is not None:  # another process has the file, or the disk is full
        busy = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
        return of_file.sqlite_errorcode & 0xFF in busy
    import requests
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        # MLflow wraps what requests raises: only the text tells a lost connection from a refusal.
        words = ("failed with exception", "failed with timeout", "error code 502", "error code 503", "error code 504")
        return error.error_code == "TEMPORARILY_UNAVAILABLE" or any(word in str(error) for word in words)
    return isinstance(error, requests.ConnectionError | requests.Timeout)


def _of_sqlite(error: Exception) -> sqlite3.OperationalError | None:
    """SQLite's own error, also inside SQLAlchemy's and that inside MLflow's."""
    own = getattr(error.__cause__, "orig", error)
    return own if isinstance(own, sqlite3.OperationalError) else None


def quieten() -> None:
    """Keep from the user what MLflow logs of every database migration and every model."""
    ours = ("alembic", "mlflow.store.db.utils", "mlflow.tracking", "mlflow.utils.environment", "mlflow.models")
    for name in (*ours, "mlflow.pyfunc", "mlflow.store.model_registry"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a database that is away: we say it
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # which shows a password in the URI
