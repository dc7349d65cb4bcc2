"""Runs that are over, written many at a time: a sweep's trials, and what is measured of them afterwards.

In: `EndedRun`s. Out: MLflow runs. MLflow's client has no call for a whole run, and those that it has take a dozen
transactions, 0.19 s a trial on a SQLite file. There its tables are filled directly, in one transaction for all that
wait (`sqlite_file`). Other servers are written by the client.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uml_core.config import Experiment, TrackingConfig
from uml_core.tracking.client import PatientClient
from uml_core.tracking.records import MetricPoint
from uml_core.tracking.sqlite_file import Rows, insert, is_file
from uml_core.tracking.writing import MLflowTracker, finite_values, milliseconds, run_params, run_tags, start_run

MAX_PARAM = 6000  # letters, MLflow's limit


@dataclass(frozen=True)
class EndedRun:
    """A run with all that is known of it; times in seconds since 1970."""

    experiment: Experiment
    name: str
    kind: str
    tags: Mapping[str, str]
    points: Sequence[MetricPoint]
    status: str
    started_at: float
    ended_at: float
    parent_run_id: str


@dataclass(frozen=True)
class Addition:
    """Values and tags for a run that is written."""

    run_id: str
    points: Sequence[MetricPoint]
    tags: Mapping[str, str]


def write_runs(tracking: TrackingConfig, experiment_id: str, runs: Sequence[EndedRun]) -> list[str]:
    """Write runs of one experiment; returns their ids."""
    if not is_file(tracking.uri):
        return [_by_client(run, experiment_id) for run in runs]
    from mlflow.utils.uri import append_to_uri_path

    location = PatientClient(tracking.uri).get_experiment(experiment_id).artifact_location
    ids, rows = [uuid.uuid4().hex for _ in runs], list[Rows]()
    for run_id, run in zip(ids, runs, strict=True):
        facts = {
            **{"run_uuid": run_id, "name": run.name, "experiment_id": int(experiment_id), "status": run.status},
            **{"start_time": milliseconds(run.started_at), "end_time": milliseconds(run.ended_at)},
            **{"lifecycle_stage": "active", "artifact_uri": append_to_uri_path(location, run_id, "artifacts")},  # type: ignore[no-untyped-call]
            **{"source_type": "UNKNOWN", "user_id": "unknown"},
            **dict.fromkeys(("source_name", "entry_point_name", "source_version"), ""),
        }
        params = {key: value[:MAX_PARAM] for key, value in run_params(run.experiment).items()}
        tags = run_tags(run.experiment, run.name, run.kind, run.tags, run.parent_run_id)
        rows += [("runs", [facts]), ("params", _pairs(run_id, params)), *_rows_of(Addition(run_id, run.points, tags))]
    insert(tracking.uri, rows)
    return ids


def add_to_runs(tracking: TrackingConfig, additions: Sequence[Addition]) -> None:
    """Add to runs that are written."""
    if not is_file(tracking.uri):
        for addition in additions:
            MLflowTracker(tracking, addition.run_id).log_metrics(addition.points, addition.tags)
        return
    insert(tracking.uri, [rows for addition in additions for rows in _rows_of(addition)])


def _by_client(run: EndedRun, experiment_id: str) -> str:
    tracker = start_run(
        run.experiment,
        name=run.name,
        kind=run.kind,
        tags=run.tags,
        experiment_id=experiment_id,
        parent_run_id=run.parent_run_id,
        points=run.points,
        started_at=run.started_at,
    )
    tracker.finish(run.status, ended_at=run.ended_at)
    return tracker.run_id


def _rows_of(addition: Addition) -> list[Rows]:
    values = [
        {"run_uuid": addition.run_id, **value._asdict(), "is_nan": False} for value in finite_values(addition.points)
    ]
    values.sort(key=lambda value: (value["step"], value["timestamp"], value["value"]))  # of each key the last is kept
    return [("metrics", values), ("latest_metrics", values), ("tags", _pairs(addition.run_id, addition.tags))]


def _pairs(run_id: str, values: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"run_uuid": run_id, "key": key, "value": value} for key, value in values.items()]
