"""MLflow's tables in a SQLite file, written and read directly: its client takes a hundred times as long.

Tests compare what is written with what the client writes, and what is read with what it reads. Other servers are for
the client.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from uml_core.tracking.client import PatientClient
from uml_core.tracking.records import PARENT_TAG, RunRecord

Rows = tuple[str, Sequence[Mapping[str, Any]]]  # of one table
Result = TypeVar("Result")
BUSY_S = 60.0  # other processes may hold the database so long


def is_file(uri: str) -> bool:
    """Whether a tracking URI is that of a SQLite file."""
    return uri.startswith("sqlite:///") and "?" not in uri


def insert(uri: str, tables: Sequence[Rows]) -> None:
    """Insert rows in one transaction, in place of those of the same primary key."""

    merged: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for table, rows in tables:
        merged[table] += rows

    def all_of(file: sqlite3.Connection) -> None:
        for table, rows in merged.items():
            if rows:
                columns = list(rows[0])
                places = ", ".join(f":{column}" for column in columns)
                file.executemany(f"INSERT OR REPLACE INTO {table} ({', '.join(columns)}) VALUES ({places})", rows)

    _in_file(uri, all_of)


def read_runs(uri: str, experiment_id: str, parent_run_id: str | None = None) -> list[RunRecord]:
    """The runs of an experiment, or those of them that are nested in one; newest first."""
    which, given = "experiment_id = ? AND lifecycle_stage = 'active'", [experiment_id]
    if parent_run_id is not None:
        which += f" AND run_uuid IN (SELECT run_uuid FROM tags WHERE key = '{PARENT_TAG}' AND value = ?)"
        given.append(parent_run_id)

    def read(file: sqlite3.Connection) -> list[RunRecord]:
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

    return _in_file(uri, read)


def _in_file(uri: str, operation: Callable[[sqlite3.Connection], Result]) -> Result:
    """What an operation in one transaction returns; waits while another process has the file."""

    def run() -> Result:
        with contextlib.closing(sqlite3.connect(uri.removeprefix("sqlite:///"), timeout=BUSY_S)) as file, file:
            return operation(file)

    result: Result = PatientClient(uri).patiently(run)
    return result
