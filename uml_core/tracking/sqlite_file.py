"""MLflow's tables in a SQLite file, written and read directly: its client takes a hundred times as long, and 1.5 s to
import.

Tests compare what is written with what the client writes, and what is read with what it reads. Other servers are for
the client.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from uml_core.errors import InputError
from uml_core.tracking.client import PatientClient
from uml_core.tracking.records import PARENT_TAG, RunRecord

Rows = tuple[str, Sequence[Mapping[str, Any]]]  # of one table
Result = TypeVar("Result")
BUSY_S = 60.0  # other processes may hold the database so long


def is_file(uri: str) -> bool:
    """Whether a tracking URI is that of a SQLite file."""
    return uri.startswith("sqlite:///") and "?" not in uri


def insert(uri: str, tables: Sequence[Rows]) -> None:
    """Insert rows in one transaction, in place of those of the same primary key.

    Raises InputError where the file cannot be written, or has other tables than this version of MLflow.
    """
    merged: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for table, rows in tables:
        merged[table] += rows

    def all_of(file: sqlite3.Connection) -> None:
        for table, rows in merged.items():
            if rows:
                columns = list(rows[0])
                places = ", ".join(f":{column}" for column in columns)
                file.executemany(f"INSERT OR REPLACE INTO {table} ({', '.join(columns)}) VALUES ({places})", rows)

    try:
        _in_file(uri, all_of)
    except sqlite3.Error as error:
        raise InputError(f"tracking.uri {uri} cannot be written: {error}") from None


def read_runs(uri: str, experiment_id: str, parent_run_id: str | None) -> list[RunRecord]:
    """The runs of an experiment, or those of them that are nested in one; newest first."""
    which, given = "experiment_id = ? AND lifecycle_stage = 'active'", [experiment_id]
    if parent_run_id is not None:
        which += f" AND run_uuid IN (SELECT run_uuid FROM tags WHERE key = '{PARENT_TAG}' AND value = ?)"
        given.append(parent_run_id)
    return _in_file(uri, lambda file: _runs(file, which, given))


def read_run(uri: str, run_id: str) -> RunRecord | None:
    """One run, deleted or not; None where the file has none of that id."""
    found = _found(uri, lambda file: _runs(file, "run_uuid = ?", [run_id]))
    return found[0] if found else None


def read_experiment(uri: str, name: str) -> tuple[str, dict[str, str]] | None:
    """The id and the tags of an experiment; None where the file has none of that name, or it is deleted."""

    def read(file: sqlite3.Connection) -> tuple[str, dict[str, str]] | None:
        query = "SELECT experiment_id FROM experiments WHERE name = ? AND lifecycle_stage = 'active'"
        found = file.execute(query, [name]).fetchone()
        return found and (
            str(found[0]),
            dict(file.execute("SELECT key, value FROM experiment_tags WHERE experiment_id = ?", found)),
        )

    return _found(uri, read)


def read_location(uri: str, experiment_id: str) -> str | None:
    """Where the artifacts of an experiment go; None where it is deleted, which the client refuses."""
    query = "SELECT artifact_location FROM experiments WHERE experiment_id = ? AND lifecycle_stage = 'active'"
    found = _in_file(uri, lambda file: file.execute(query, [experiment_id]).fetchone())
    return str(found[0]) if found else None


# The folder of each kind of URI, by what the URI says; what was deleted is left to the client, which refuses it.
NOT_DELETED = "current_stage <> 'Deleted_Internal'"
RUN_FOLDER = "SELECT artifact_uri FROM runs WHERE run_uuid = ?"
MODEL_FOLDERS = (
    (
        r"models:/(m-[^/@]+)",
        "SELECT artifact_location FROM logged_models WHERE model_id = ? AND lifecycle_stage = 'active'",
    ),
    (
        r"models:/([^/@]+)@([^/@]+)",
        "SELECT storage_location FROM model_versions v JOIN registered_model_aliases a USING (name, version) "
        f"WHERE name = ? AND alias = ? AND {NOT_DELETED}",
    ),
    (
        r"models:/([^/@]+)/(\d+)",
        f"SELECT storage_location FROM model_versions WHERE name = ? AND version = ? AND {NOT_DELETED}",
    ),
    (
        r"runs:/([^/]+)/([^/]+)",
        "SELECT artifact_location FROM logged_models WHERE source_run_id = ? AND name = ? "
        "AND lifecycle_stage = 'active' ORDER BY creation_timestamp_ms DESC",
    ),
)


def local_artifact(uri: str, artifact_uri: str) -> Path | None:
    """Where runs:/RUN_ID/PATH or models:/... lies on this machine; None where it is not found there."""
    for pattern, query in MODEL_FOLDERS:
        matched = re.fullmatch(pattern, artifact_uri)
        if matched and (path := _folder(uri, query, matched.groups())) and path.exists():
            return path
    matched = re.fullmatch(r"runs:/([^/]+)/(.+)", artifact_uri)
    if matched and (path := run_folder(uri, matched[1])) and (path / matched[2]).exists():
        return path / matched[2]
    return None


def run_folder(uri: str, run_id: str) -> Path | None:
    """The folder of a run's artifacts; None where it is not on this machine, or the run in no SQLite file."""
    return _folder(uri, RUN_FOLDER, [run_id]) if is_file(uri) else None


def _folder(uri: str, query: str, given: Sequence[str]) -> Path | None:
    found = _found(uri, lambda file: file.execute(query, given).fetchone())
    scheme, _, path = str(found[0] if found and found[0] else "").rpartition("://")
    return Path(unquote(path)) if path.startswith("/") and scheme in ("", "file") else None


def _runs(file: sqlite3.Connection, which: str, given: Sequence[str]) -> list[RunRecord]:
    def values_of(table: str, value: str = "value") -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = defaultdict(dict)
        of_these = f"SELECT run_uuid FROM runs WHERE {which}"
        for run_id, key, stored in file.execute(
            f"SELECT run_uuid, key, {value} FROM {table} WHERE run_uuid IN ({of_these})", given
        ):
            found[run_id][key] = stored
        return found

    file.execute("BEGIN")  # all of one state, whoever writes meanwhile
    params, tags = values_of("params"), values_of("tags")
    metrics = values_of("latest_metrics", "CASE WHEN is_nan THEN 'nan' ELSE value END")

    def floats(run_id: str) -> dict[str, float]:
        return {key: float(value) for key, value in metrics[run_id].items()}

    columns, order = "run_uuid, name, status, start_time, end_time", "start_time DESC, run_uuid"
    return [
        RunRecord(run_id, name or "", status, params[run_id], floats(run_id), tags[run_id], start or 0, end or 0)
        for run_id, name, status, start, end in file.execute(
            f"SELECT {columns} FROM runs WHERE {which} ORDER BY {order}", given
        )
    ]


def _found(uri: str, read: Callable[[sqlite3.Connection], Result]) -> Result | None:
    """What is read, or None where the file or its tables are not there: MLflow's client says it then, or makes them."""
    if not Path(uri.removeprefix("sqlite:///")).exists():
        return None
    try:
        return _in_file(uri, read)
    except sqlite3.OperationalError:
        return None


def _in_file(uri: str, operation: Callable[[sqlite3.Connection], Result]) -> Result:
    """What an operation in one transaction returns; waits while another process has the file."""

    def run() -> Result:
        with contextlib.closing(sqlite3.connect(uri.removeprefix("sqlite:///"), timeout=BUSY_S)) as file, file:
            return operation(file)

    result: Result = PatientClient(uri).patiently(run)
    return result
