"""The tracking URI: whether it can be used, found out at once and without importing MLflow; and how it is shown."""

from __future__ import annotations

import functools
from pathlib import Path

from uml_core.config import Experiment
from uml_core.errors import InputError, listing

TRACKING_SCHEMES = {"sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks"}


@functools.cache  # once per process: a server that answered once is waited for
def check_tracking(uri: str) -> None:
    """Fail at once where the first call would wait for minutes, and make the folder of a SQLite file.

    Raises InputError where the tracking URI cannot be reached or written, or is of a kind MLflow no longer writes.
    """
    shown = without_credentials(uri)
    if uri.startswith(("http://", "https://")):
        import requests  # which a file, the default, does without

        try:
            requests.get(uri.rstrip("/") + "/health", timeout=10)
        except requests.RequestException as error:
            raise InputError(
                f"tracking.uri {shown} cannot be reached ({type(error).__name__}); start the server "
                "(mlflow server), or use sqlite:///runs/mlflow.db"
            ) from None
    elif uri.startswith("sqlite:///"):
        folder = Path(uri.removeprefix("sqlite:///")).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"tracking.uri {shown} cannot be written: {error.strerror}") from None
    elif uri.partition("://")[0].partition("+")[0] not in TRACKING_SCHEMES and "://" in uri:
        raise InputError(
            f"tracking.uri is {shown}, which cannot be used; schemes are {listing(sorted(TRACKING_SCHEMES))}"
        )
    elif "://" not in uri and uri != "databricks":
        raise InputError(f"tracking.uri is {shown}; MLflow 3 writes no plain folders, use sqlite:///runs/mlflow.db")


def check_has_runs(uri: str, *, lost: str) -> None:
    """Refuse a tracking URI where nothing can be found, and leave no empty database there.

    Raises InputError that begins with `lost`, where there is no such SQLite file, or the URI cannot be reached.
    """
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise InputError(
            f"{lost}: tracking.uri {uri} does not exist; run train or tune first, or give the URI of their runs"
        )
    check_tracking(uri)


def without_credentials(uri: str) -> str:
    """A URI as it may be shown: no user, no password, no query (a database's may hold a password)."""
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme == "sqlite":  # a path, which may hold an @
        return uri
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"


def without_password(experiment: Experiment) -> Experiment:
    """The experiment as it may be written and shown; other places hold no password (`pipelines.places`)."""
    return experiment.override({"tracking.uri": without_credentials(experiment.tracking.uri)})
