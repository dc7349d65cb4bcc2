"""Writing runs: the experiment, a run with its parameters, and what is logged into it. Names: docs/mlflow.md."""

from __future__ import annotations

import contextlib
import math
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from filelock import FileLock

from uml_core.config import Experiment, TrackingConfig
from uml_core.errors import InputError, first_line
from uml_core.tracking.client import PatientClient, mlflow_client, quieten
from uml_core.tracking.records import PARENT_TAG, PRESENTED_TAG, MetricPoint
from uml_core.tracking.sqlite_file import run_folder
from uml_core.tracking.uri import check_artifacts, check_tracking, sqlite_path, without_credentials, without_password

if TYPE_CHECKING:
    from mlflow.entities import Metric, RunTag  # MLflow takes a second to import, which files alone do without

    from uml_core.serving.predictor import Predictor


class MLflowTracker:
    """Writes one MLflow run. Several trackers of one run may exist one after another (resuming, the controller)."""

    def __init__(self, tracking: TrackingConfig, run_id: str) -> None:
        self.run_id, self._tracking = run_id, tracking
        self._client = PatientClient(tracking.uri)

    def log_metrics(self, points: Sequence[MetricPoint], tags: Mapping[str, str] | None = None) -> None:
        """Log values, and tags in the same call."""
        self._client.log_batch(self.run_id, metrics=_metrics(points), tags=_tags(tags or {}))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._client.log_batch(self.run_id, tags=_tags(tags))

    def log_artifact(self, path: Path, folder: str) -> None:
        self._client.log_artifact(self.run_id, str(path), folder)

    def log_text(self, text: str, name: str) -> None:
        self._client.log_text(self.run_id, text, name)

    def log_files(self, files: Mapping[str, bytes], folder: str) -> None:
        """Write files by name, which may lead to folders of their own, to a folder of the run's artifacts."""
        with tempfile.TemporaryDirectory() as directory:
            for name, content in files.items():
                path = Path(directory) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            if files:
                self.log_folder(Path(directory), folder)

    def log_folder(self, directory: Path, folder: str) -> None:
        place = run_folder(self._tracking.uri, self.run_id)
        if place is not None:
            shutil.copytree(directory, place / folder, dirs_exist_ok=True)
            return
        self._client.log_artifacts(self.run_id, str(directory), folder)

    def log_predictor(self, predictor: Predictor, directory: Path) -> str:
        """Log the target model as an MLflow model of raw inputs; returns its URI."""
        import mlflow

        from uml_core.tracking.target_model import log_target_model  # torch: who logs numbers has no use for it

        predictor.save(directory)
        mlflow.set_tracking_uri(self._tracking.uri)
        before = self._client.get_run(self.run_id).info
        uri = str(self._client.patiently(lambda: log_target_model(predictor, directory, self.run_id)))
        if before.end_time is not None:  # MLflow opens a finished run anew and ends it now
            self._client.set_terminated(self.run_id, before.status, before.end_time)
        return uri

    def register_model(self, model_uri: str, name: str, *, tags: Mapping[str, str], alias: str | None) -> str:
        """Register a logged model, under an alias if one is given; returns models:/NAME@ALIAS or models:/NAME/VERSION.

        A version that carries the same tags is taken for this one: a step that was killed registers nothing twice. The
        run's MLflow experiment names the run as the one that was presented last.
        """
        from mlflow.exceptions import MlflowException

        client = self._client
        with contextlib.suppress(MlflowException):  # it exists; that it cannot be made shows in the next call
            client.create_registered_model(name)
        versions = client.search_model_versions(f"name = '{name}'")
        found = next((version for version in versions if tags.items() <= dict(version.tags).items()), None)
        if found is None:
            logged = client.get_logged_model(model_uri.removeprefix("models:/"))
            found = client.create_model_version(
                name, model_uri, run_id=self.run_id, tags=dict(tags), model_id=logged.model_id
            )
        client.set_experiment_tag(client.get_run(self.run_id).info.experiment_id, PRESENTED_TAG, self.run_id)
        if alias is None:
            return f"models:/{name}/{found.version}"
        client.set_registered_model_alias(name, alias, found.version)
        return f"models:/{name}@{alias}"

    def discard(self) -> None:
        """Delete the run (MLflow keeps deleted runs out of every list)."""
        self._client.delete_run(self.run_id)

    def finish(self, status: str = "FINISHED", *, ended_at: float | None = None) -> None:
        """End the run: now, or at some seconds since 1970."""
        self._client.set_terminated(self.run_id, status, milliseconds(ended_at))


def open_experiment(tracking: TrackingConfig, name: str) -> str:
    """Create database and experiment where they are missing; returns the experiment's id.

    Raises InputError where the tracking URI cannot be reached or is of a kind MLflow no longer writes.
    """
    from mlflow.exceptions import MlflowException

    quieten()
    check_tracking(tracking.uri)
    remote = tracking.uri.startswith(("http://", "https://", "databricks"))
    try:
        with _alone_on(tracking.uri):
            client: Any = PatientClient(tracking.uri) if remote else mlflow_client(tracking.uri)
            experiment = client.get_experiment_by_name(name)
            if experiment is not None:
                if experiment.lifecycle_stage == "deleted":
                    raise InputError(
                        f"MLflow's experiment '{name}' is deleted; give another name, or restore it: "
                        f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
                    )
                check_artifacts(experiment.artifact_location)
                return str(experiment.experiment_id)
            # A server stores artifacts itself; beside a database they go to the folder of the experiment file.
            location = None if remote else _as_uri(f"{tracking.artifacts}/{name}")
            check_artifacts(location or "")
            return str(client.create_experiment(name, artifact_location=location))
    except MlflowException as error:
        raise InputError(
            f"tracking.uri {without_credentials(tracking.uri)} cannot be used: {first_line(error)}"
        ) from None


def start_run(
    experiment: Experiment,
    *,
    name: str,
    kind: str,
    tags: Mapping[str, str],
    experiment_id: str | None = None,
    parent_run_id: str | None = None,
    points: Sequence[MetricPoint] = (),
    started_at: float | None = None,
    request: str | None = None,
) -> MLflowTracker:
    """Start a run with the flattened experiment as parameters; nested under `parent_run_id` if that is given.

    It begins now, or where what it holds is over, at `started_at` (seconds since 1970), with its `points`. Who starts
    many gives the id that `open_experiment` has returned. A `request` is made once: where a
    process was killed after it had made the run, the same request finds that run.
    """
    from mlflow.entities import Param

    client = PatientClient(experiment.tracking.uri)
    if experiment_id is None:
        found = client.get_experiment_by_name(experiment.name)
        assert found is not None, "open_experiment() comes first"
        experiment_id = found.experiment_id
    all_tags = run_tags(experiment, name, kind, tags, parent_run_id)
    run = _create_run_once(client, experiment_id, all_tags, started_at, request)
    params = [Param(key, value) for key, value in run_params(experiment).items()]
    client.log_batch(run.info.run_id, params=params, metrics=_metrics(points))
    return MLflowTracker(experiment.tracking, run.info.run_id)


def run_tags(
    experiment: Experiment, name: str, kind: str, tags: Mapping[str, str], parent_run_id: str | None
) -> dict[str, str]:
    """A run's tags: its own, and those that every run has."""
    return {
        "mlflow.runName": name,
        "uml.kind": kind,
        "uml.config_hash": experiment.config_hash,
        "uml.corpora": ",".join(experiment.corpora),
        "uml.target": experiment.target,
        **tags,
        **({PARENT_TAG: parent_run_id} if parent_run_id else {}),
    }


def run_params(experiment: Experiment) -> dict[str, str]:
    """A run's parameters: the flattened experiment, without a password."""
    return {key: str(value) for key, value in without_password(experiment).flattened().items()}


def _create_run_once(
    client: PatientClient,
    experiment_id: str,
    tags: Mapping[str, str],
    started_at: float | None,
    given: str | None,
) -> Any:
    """Create a run; where the answer was lost with the server, the run that was made is found by its request's tag."""
    request, attempts = given or uuid.uuid4().hex, int(given is not None)

    def create() -> Any:
        nonlocal attempts
        attempts += 1
        if attempts > 1:
            made = client.plain.search_runs([experiment_id], f"tags.`uml.request` = '{request}'")
            if made:
                return made[0]
        return client.plain.create_run(experiment_id, milliseconds(started_at), tags={**tags, "uml.request": request})

    return client.patiently(create)


class Value(NamedTuple):
    """A value of a metric, as MLflow keeps it."""

    key: str
    value: float
    timestamp: int
    step: int


def finite_values(points: Sequence[MetricPoint]) -> list[Value]:
    """What is logged now; a value that is not finite is left out, for MLflow would store an infinity as a number."""
    now = int(time.time() * 1000)
    finite = (point for point in points if math.isfinite(point.value))
    return [Value(metric_name(point.name), point.value, now, point.step) for point in finite]


def _metrics(points: Sequence[MetricPoint]) -> list[Metric]:
    from mlflow.entities import Metric

    return [Metric(*value) for value in finite_values(points)]


def _tags(tags: Mapping[str, str]) -> list[RunTag]:
    from mlflow.entities import RunTag

    return [RunTag(key, value) for key, value in tags.items()]


def milliseconds(seconds: float | None) -> int | None:
    """Time as MLflow keeps it."""
    return None if seconds is None else int(1000 * seconds)


def metric_name(name: str) -> str:
    """A name MLflow accepts for a metric: letters that it refuses become _ (a class may be called "C++")."""
    return re.sub(r"[^/\w.\- :]", "_", name)


def _alone_on(uri: str) -> contextlib.AbstractContextManager[Any]:
    """A lock on a SQLite file: its first two users would race to create its tables."""
    if not uri.startswith("sqlite:///"):
        return contextlib.nullcontext()
    return FileLock(f"{sqlite_path(uri)}.lock")


def _as_uri(path: str) -> str:
    return path if "://" in path else Path(path).resolve().as_uri()
