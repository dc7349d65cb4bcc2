"""Reading runs, artifacts and models back from MLflow."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uml_core.config import Experiment, TrackingConfig
from uml_core.errors import InputError, first_line, listing, nearest
from uml_core.tracking.client import PatientClient, quieten
from uml_core.tracking.records import PARENT_TAG, PRESENTED_TAG, SPACE_FILE, RunRecord
from uml_core.tracking.sqlite_file import is_file, local_artifact, read_experiment, read_run, read_runs
from uml_core.tracking.uri import check_tracking, without_credentials

if TYPE_CHECKING:
    from uml_core.serving.predictor import Predictor  # torch: who reads records has no use for it


def experiment_runs(tracking_uri: str, name: str) -> list[RunRecord]:
    """Every run of an MLflow experiment, newest first; what a sweep's space is, `with_spaces` adds.

    Raises InputError where the tracking URI cannot be reached, or has no experiment of that name.
    """
    experiment_id, _ = _experiment(tracking_uri, name)
    return _all_runs(PatientClient(tracking_uri), tracking_uri, experiment_id)


def presented_run(tracking_uri: str, name: str) -> str:
    """The id of the run whose model a step registered last, in train or tune, under an MLflow experiment's name.

    Raises InputError where the tracking URI cannot be reached, or no step registered a model of that name.
    """
    _, tags = _experiment(tracking_uri, name)
    if PRESENTED_TAG not in tags:
        raise InputError(
            f"experiment {name} has no model that train or tune registered; run python -m pipelines.train first, or "
            "give --run"
        )
    return tags[PRESENTED_TAG]


def _experiment(tracking_uri: str, name: str) -> tuple[str, dict[str, str]]:
    """Id and tags."""
    quieten()
    check_tracking(tracking_uri)
    if is_file(tracking_uri) and (known := read_experiment(tracking_uri, name)):
        return known
    client = PatientClient(tracking_uri)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        names = [found.name for found in client.search_experiments()]
        raise InputError(
            f"MLflow at {without_credentials(tracking_uri)} has no experiment '{name}'{nearest(name, names)}; "
            f"it has {listing(names) or 'none'}; run train or tune first, or set tracking.uri"
        )
    return str(experiment.experiment_id), dict(experiment.tags)


def with_spaces(tracking_uri: str, records: Sequence[RunRecord]) -> list[RunRecord]:
    """The records with each sweep's space: two requests to the artifact store a sweep, so for reports alone."""
    return [_with_space(record, tracking_uri) for record in records]


def sweep_runs(experiment: Experiment, parent_run_id: str) -> list[RunRecord]:
    """A sweep's parent run and its nested runs: what a sweep needs of an experiment with thousands of runs."""
    client = PatientClient(experiment.tracking.uri)
    parent = client.get_run(parent_run_id)
    nested = _all_runs(client, experiment.tracking.uri, parent.info.experiment_id, parent_run_id)
    return [_with_space(_record(parent), experiment.tracking.uri), *nested]


def _all_runs(client: PatientClient, uri: str, experiment_id: str, parent_run_id: str | None = None) -> list[RunRecord]:
    if is_file(uri):
        return read_runs(uri, experiment_id, parent_run_id)
    filter_string = "" if parent_run_id is None else f"tags.`{PARENT_TAG}` = '{parent_run_id}'"
    records: list[RunRecord] = []
    token: str | None = None
    while token != "":
        page = client.search_runs([experiment_id], filter_string, max_results=1000, page_token=token)
        records += [_record(run) for run in page]
        token = page.token or ""
    return records


def find_run(tracking: TrackingConfig, run_id: str) -> RunRecord:
    """One run. Raises InputError if there is none of that id."""
    quieten()
    check_tracking(tracking.uri)
    if is_file(tracking.uri) and (known := read_run(tracking.uri, run_id)):
        return known
    from mlflow.exceptions import MlflowException

    try:
        return _record(PatientClient(tracking.uri).get_run(run_id))
    except MlflowException:
        raise InputError(
            f"--run is {run_id}, which MLflow at {without_credentials(tracking.uri)} does not have; "
            "train prints the id of its run, and `mlflow ui` lists all"
        ) from None


def download(tracking_uri: str, uri: str, directory: Path) -> Path:
    """Fetch a run's artifact or a model (runs:/..., models:/..., a path) to a local folder; what lies on this machine
    stays where it is.

    Raises InputError where nothing is found at the URI.
    """
    quieten()
    check_tracking(tracking_uri)
    if ":/" not in uri and Path(uri).exists():
        return Path(uri)
    if is_file(tracking_uri) and (known := local_artifact(tracking_uri, uri)):
        return known
    import mlflow
    from mlflow.exceptions import MlflowException

    mlflow.set_tracking_uri(tracking_uri)  # models:/NAME@ALIAS is looked up in the registry beside it
    try:
        return Path(
            mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(directory), tracking_uri=tracking_uri)
        )
    except (MlflowException, OSError) as error:
        raise InputError(
            f"{uri} cannot be fetched from MLflow at {without_credentials(tracking_uri)}: {first_line(error)}"
        ) from None


def load_predictor(tracking_uri: str, model_uri: str, directory: Path) -> Predictor:
    """Load the target model that a run logged. Raises InputError if the URI holds none."""
    from uml_core.serving.target_predictor import load_predictor_folder

    return load_predictor_folder(predictor_folder(tracking_uri, model_uri, directory))


def predictor_folder(tracking_uri: str, model_uri: str, directory: Path) -> Path:
    """The folder that `Predictor.save` wrote, fetched. Raises InputError if the URI holds none."""
    found = sorted(download(tracking_uri, model_uri, directory).rglob("predictor.json"))
    if not found:
        raise InputError(f"{model_uri} holds no target model of this project (predictor.json is missing)")
    return found[0].parent


def _with_space(record: RunRecord, tracking_uri: str) -> RunRecord:
    """The record of a sweep with its space beside it, other records as they are."""
    if record.kind != "sweep" or record.space_json:
        return record
    if is_file(tracking_uri) and (known := local_artifact(tracking_uri, f"runs:/{record.run_id}/{SPACE_FILE}")):
        return replace(record, space_json=known.read_text(encoding="utf-8"))
    client = PatientClient(tracking_uri)
    # Listed first: what is raised for a file that is not there differs from one artifact store to the next.
    if SPACE_FILE not in {file.path for file in client.list_artifacts(record.run_id)}:
        return record
    with tempfile.TemporaryDirectory() as directory:
        file = Path(client.download_artifacts(record.run_id, SPACE_FILE, directory))
        return replace(record, space_json=file.read_text(encoding="utf-8"))


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
