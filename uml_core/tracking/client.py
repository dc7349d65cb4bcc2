"""MLflow's client, patient: every call to a tracking server goes through it, and waits for a server that went away."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # two small files do not need one
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # PatientClient waits instead, and says so

import requests
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from uml_core.errors import InputError, OutageError
from uml_core.tracking.place import without_password
from uml_core.tracking.waiting import with_patience

MAX_OUTAGE_S = 600.0  # a tracking server may be away for so long before a step gives up


class PatientClient:
    """MLflow's client, whose calls wait for a server that went away: the one place where tracking is retried.

    Calls are safe to repeat: MLflow keeps equal values of tags, parameters and metrics once.
    """

    def __init__(self, uri: str) -> None:
        self.plain, self._uri = mlflow_client(uri), uri

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return the client's method of that name, made patient."""
        method = getattr(self.plain, name)
        return lambda *given, **named: self.patiently(lambda: method(*given, **named))

    def patiently(self, operation: Callable[[], Any]) -> Any:
        """Return what an operation on the server returns, waiting while the server is away.

        Raises:
            OutageError: it has been away for MAX_OUTAGE_S.
        """
        shown = without_password(self._uri)
        try:
            return with_patience(
                operation, what=f"tracking.uri {shown}", is_temporary=is_outage, max_wait_s=MAX_OUTAGE_S
            )
        except Exception as error:
            if not is_outage(error):
                raise
            raise OutageError(
                f"tracking.uri {shown} did not answer for {MAX_OUTAGE_S:.0f} s; start it again and run the same line, "
                "which goes on where this run stopped"
            ) from error


def mlflow_client(uri: str) -> MlflowClient:
    """Return MLflow's client. Raises InputError where a database's driver is not installed."""
    try:
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    except ModuleNotFoundError as error:
        package = {"psycopg": "psycopg[binary]"}.get(error.name or "", error.name)
        raise InputError(
            f"tracking.uri {without_password(uri)} needs package {package}, which is not installed: "
            f'pip install "{package}"'
        ) from None


def is_outage(error: Exception) -> bool:
    """Return whether an error says that the server, or its database, is away for now."""
    if isinstance(error, MlflowException):
        words = ("failed with exception", "failed with timeout", "error code 502", "error code 503", "error code 504")
        return error.error_code == "TEMPORARILY_UNAVAILABLE" or any(word in str(error) for word in words)
    return isinstance(error, requests.ConnectionError | requests.Timeout)


def quieten() -> None:
    """MLflow tells about every database migration; that is not the user's business."""
    ours = ("alembic", "mlflow.store.db.utils", "mlflow.tracking", "mlflow.utils.environment", "mlflow.models")
    for name in (*ours, "mlflow.pyfunc"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a database that is away: we say it
