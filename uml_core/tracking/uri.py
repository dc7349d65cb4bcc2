"""The tracking URI: whether it can be used, found out at once and without importing MLflow; and how it is shown."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

from uml_core.config import Experiment
from uml_core.errors import InputError, first_line, listing

TRACKING_SCHEMES = {"sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks"}
ANSWER_S = 10  # within which a server, a database or storage must say something at first
S3_ENDPOINTS = ("MLFLOW_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")  # as MLflow and boto3 look for it
SQLITE_HEADER = b"SQLite format 3\0"  # an empty file is a database, too


@functools.cache  # once per process: a server that answered once is waited for
def check_tracking(uri: str) -> None:
    """Fail at once where the first call would wait for minutes, and make the folder of a SQLite file.

    Raises InputError where the tracking URI cannot be reached or written, or is of a kind MLflow no longer writes.
    """
    shown = without_credentials(uri)
    if uri.startswith(("http://", "https://")):
        import requests  # which a file, the default, does without

        try:
            requests.get(uri.rstrip("/") + "/health", timeout=ANSWER_S)
        except requests.RequestException as error:
            raise InputError(
                f"tracking.uri {shown} cannot be reached ({type(error).__name__}); start the server "
                "(mlflow server), or use sqlite:///runs/mlflow.db"
            ) from None
    elif uri.startswith("sqlite:///"):
        file = sqlite_path(uri)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            begins_with = b""
            if file.exists():
                with file.open("rb") as opened:
                    begins_with = opened.read(len(SQLITE_HEADER))
        except OSError as error:
            raise InputError(f"tracking.uri {shown} cannot be written: {error.strerror}") from None
        if begins_with not in (b"", SQLITE_HEADER):  # MLflow would try it for minutes
            raise InputError(f"tracking.uri {shown} is a file of another kind; give a new one, or that of earlier runs")
    elif uri.partition("://")[0].partition("+")[0] not in TRACKING_SCHEMES and "://" in uri:
        raise InputError(
            f"tracking.uri is {shown}, which cannot be used; schemes are {listing(sorted(TRACKING_SCHEMES))}"
        )
    elif uri.startswith("postgresql"):
        _check_postgresql(uri, shown)
    elif "://" not in uri and uri != "databricks":
        raise InputError(f"tracking.uri is {shown}; MLflow 3 writes no plain folders, use sqlite:///runs/mlflow.db")


def _check_postgresql(uri: str, shown: str) -> None:
    """Connect once: MLflow would try for 100 s where a user, a password or the database's name is wrong."""
    import sqlalchemy

    try:
        with contextlib.suppress(ModuleNotFoundError):  # MLflow's client names the package
            engine = sqlalchemy.create_engine(uri, connect_args={"connect_timeout": ANSWER_S})
            engine.connect().close()
            engine.dispose()
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise InputError(
            f"tracking.uri {shown} cannot be used: {first_line(getattr(error, 'orig', None) or error)}; see to its "
            "address, user, password and name"
        ) from None


@functools.cache
def check_artifacts(location: str) -> None:
    """Fail at once where nobody is at the address of S3 storage for artifacts: boto3 would wait for six minutes."""
    name = next((name for name in S3_ENDPOINTS if os.environ.get(name)), None)
    if name is None or not location.startswith("s3://"):
        return
    address = urlsplit(os.environ[name])
    try:
        if not address.hostname:
            raise ValueError("it is not of the form http://HOST:PORT")
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname, port), timeout=ANSWER_S).close()
    except (OSError, ValueError) as error:
        raise InputError(
            f"{name} is {os.environ[name]}, where no storage answers ({error}); give the address of the one that holds "
            f"{location}"
        ) from None


def check_has_runs(uri: str, *, lost: str) -> None:
    """Refuse a tracking URI where nothing can be found, and leave no empty database there.

    Raises InputError that begins with `lost`, where there is no such SQLite file, or the URI cannot be reached.
    """
    if uri.startswith("sqlite:///") and not sqlite_path(uri).exists():
        raise InputError(
            f"{lost}: tracking.uri {uri} does not exist; run train or tune first, or give the URI of their runs"
        )
    check_tracking(uri)


def sqlite_path(uri: str) -> Path:
    """The file of a SQLite URI, which may end with options (?timeout=5)."""
    return Path(uri.removeprefix("sqlite:///").partition("?")[0])


def without_credentials(uri: str) -> str:
    """A URI as it may be shown: no user, no password, no query (a database's may hold a password)."""
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme == "sqlite":  # a path, which may hold an @
        return uri
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"


def without_password(experiment: Experiment) -> Experiment:
    """The experiment as it may be written and shown; other places hold no password (`pipelines.places`)."""
    return experiment.override({"tracking.uri": without_credentials(experiment.tracking.uri)})
