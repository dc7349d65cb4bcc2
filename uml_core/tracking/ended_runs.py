"""Runs that are over, written many at a time: a sweep's trials, what is measured afterwards, what `embed` has done.

In: `EndedRun`s. Out: MLflow runs. MLflow's client has no call for a whole run, and those that it has take a dozen
transactions, 0.19 s a trial on a SQLite file. There its tables are filled directly, in one transaction for all that
wait (`sqlite_file`). Other servers are written by the client.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from uml_core.config import Experiment, TrackingConfig
from uml_core.tracking.client import PatientClient
from uml_core.tracking.records import MetricPoint, metric_points
from uml_core.tracking.sqlite_file import Rows, insert, is_file, read_experiment, read_location
from uml_core.tracking.writing import (
    MLflowTracker,
    finite_values,
    milliseconds,
    open_experiment,
    run_params,
    run_tags,
    start_run,
)

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
    location = read_location(tracking.uri, experiment_id) if is_file(tracking.uri) else None
    if location is None:
        return [_by_client(run, experiment_id) for run in runs]
    ids, rows = [uuid.uuid4().hex for _ in runs], list[Rows]()
    for run_id, run in zip(ids, runs, strict=True):
        facts = {
            **{"run_uuid": run_id, "name": run.name, "experiment_id": int(experiment_id), "status": run.status},
            **{"start_time": milliseconds(run.started_at), "end_time": milliseconds(run.ended_at)},
            **{"lifecycle_stage": "active", "artifact_uri": _inside(location, f"{run_id}/artifacts")},
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


def log_embedding(experiment: Experiment, results: Mapping[str, Mapping[str, Any]], *, again: bool = False) -> None:
    """Log each corpus's facts (rows, rejects, rows/s, stage shares) as a run of kind embed.

    Where it is done `again` because a process was killed before it was done, the run which that has left is deleted:
    one of the same embeddings, since others may be a living process's.
    """
    tracking, began_at = experiment.tracking, time.time()
    known = read_experiment(tracking.uri, experiment.name) if is_file(tracking.uri) else None
    experiment_id = known[0] if known else open_experiment(tracking, experiment.name)
    fingerprints = [f"{corpus}={facts['fingerprint']}" for corpus, facts in results.items()]
    if again:
        client = PatientClient(tracking.uri)
        for run in client.search_runs([experiment_id], "tags.`uml.kind` = 'embed' and attributes.status = 'RUNNING'"):
            told = run.data.tags.get("uml.store_fingerprint", "").split(",")
            if set(told) & set(fingerprints):
                client.delete_run(run.info.run_id)
    names = ("rows", "rejected_rows", "rows_per_s", "steady_rows_per_s", "wall_s", "first_part_s", "encoded_rows")
    values: dict[str, float | None] = {}
    for corpus, facts in results.items():
        values |= {f"embed/{name}/{corpus}": facts.get(name) for name in names}
        values |= {f"embed/share/{stage}/{corpus}": share for stage, share in facts["stage_share"].items()}
    tags, points = {"uml.store_fingerprint": ",".join(fingerprints)}, metric_points(values)
    ended = EndedRun(experiment, "embed", "embed", tags, points, "FINISHED", began_at, time.time(), parent_run_id="")
    write_runs(tracking, experiment_id, [ended])


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


def _inside(location: str, relative: str) -> str:
    """A place in a folder, as MLflow writes it."""
    parts = urlsplit(location)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{relative}").geturl()


def _rows_of(addition: Addition) -> list[Rows]:
    values = [
        {"run_uuid": addition.run_id, **value._asdict(), "is_nan": False} for value in finite_values(addition.points)
    ]
    values.sort(key=lambda value: (value["step"], value["timestamp"], value["value"]))  # of each key the last is kept
    return [("metrics", values), ("latest_metrics", values), ("tags", _pairs(addition.run_id, addition.tags))]


def _pairs(run_id: str, values: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"run_uuid": run_id, "key": key, "value": value} for key, value in values.items()]
