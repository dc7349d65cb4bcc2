"""Tracking: waiting for what went away, runs made once, credentials from the environment, names MLflow takes."""

from __future__ import annotations

import base64
import json
import sqlite3
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
import sqlalchemy
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from mlflow.tracking import MlflowClient

from tests.conftest import vector_tree
from uml_core.config import Experiment, TrackingConfig, parse_experiment
from uml_core.errors import InputError, OutageError
from uml_core.tracking import client as tracking_client
from uml_core.tracking import writing
from uml_core.tracking.client import PatientClient, is_outage
from uml_core.tracking.ended_runs import Addition, add_to_runs, log_embedding
from uml_core.tracking.reading import experiment_runs
from uml_core.tracking.records import MetricPoint
from uml_core.tracking.uri import check_artifacts, check_has_runs
from uml_core.tracking.writing import metric_name, open_experiment, start_run

LOST = MlflowException("API request to http://x failed with exception ConnectionError")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits that were asked for; time passes by them alone."""
    waits: list[float] = []
    monkeypatch.setattr(tracking_client.time, "sleep", waits.append)
    monkeypatch.setattr(tracking_client.time, "monotonic", lambda: sum(waits))
    return waits


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    experiment = parse_experiment(vector_tree(tmp_path_factory.mktemp("tracking")))
    open_experiment(experiment.tracking, experiment.name)
    return experiment


def failing(times: int, error: Exception) -> Any:
    """An operation that fails so often before it returns "done"."""
    left = [times]

    def operation() -> str:
        left[0] -= 1
        if left[0] >= 0:
            raise error
        return "done"

    return operation


def test_waits_grow_to_a_limit_and_are_logged(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    client = PatientClient("sqlite://")
    caplog.clear()  # of MLflow's own lines on a new database
    assert client.patiently(failing(8, requests.ConnectionError())) == "done"
    assert clock == [0.5, 1, 2, 4, 8, 15, 15, 15]
    assert caplog.messages[0] == "tracking.uri sqlite:// does not answer; waiting (0 s of at most 600 s)"
    assert caplog.messages[-1] == "tracking.uri sqlite:// answers again after 60 s"


def test_a_server_that_has_answered_once_is_waited_for_where_its_experiment_is_opened(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at the end of an embedding, hours after the step has begun."""
    lost = failing(3, LOST)

    class Experiments:
        def get_experiment_by_name(self, name: str) -> Any:
            lost()
            return SimpleNamespace(
                experiment_id=name, lifecycle_stage="active", artifact_location="mlflow-artifacts:/1"
            )

    monkeypatch.setattr(writing, "check_tracking", lambda uri: None)
    monkeypatch.setattr(tracking_client, "mlflow_client", lambda uri: Experiments())
    assert open_experiment(TrackingConfig(uri="http://mlflow"), "birds") == "birds"
    assert clock == [0.5, 1, 2]


def test_mistakes_are_not_waited_for(clock: list[float]) -> None:
    with pytest.raises(ValueError, match="wrong"):
        PatientClient("sqlite://").patiently(failing(1, ValueError("wrong")))
    assert clock == []


def test_a_server_that_stays_away_ends_in_one_line(clock: list[float]) -> None:
    client = PatientClient("sqlite://")
    with pytest.raises(OutageError, match=r"did not answer for 600 s; start it again and run the same line") as refusal:
        client.patiently(failing(10**6, requests.ConnectionError()))
    assert "\n" not in str(refusal.value)
    assert sum(clock) == 600


def of_sqlite(code: int) -> MlflowException:
    """What MLflow makes of SQLAlchemy's error of an SQLite error."""
    said = sqlite3.OperationalError("said")
    said.sqlite_errorcode = code
    error = MlflowException("said", error_code=TEMPORARILY_UNAVAILABLE)
    error.__cause__ = sqlalchemy.exc.OperationalError("INSERT", {}, said)
    return error


@pytest.mark.parametrize(
    ("error", "outage"),
    [
        (LOST, True),
        (MlflowException("gone", error_code=TEMPORARILY_UNAVAILABLE), True),
        (MlflowException("API request to endpoint /x failed with error code 503 != 200"), True),
        (requests.ConnectTimeout(), True),
        (MlflowException("no such run"), False),
        (of_sqlite(sqlite3.SQLITE_BUSY), True),
        (of_sqlite(sqlite3.SQLITE_READONLY), False),
        (ValueError("x"), False),
    ],
)
def test_outages_are_told_from_mistakes(error: Exception, outage: bool) -> None:
    assert is_outage(error) is outage


def test_a_run_whose_answer_was_lost_is_made_once(
    experiment: Experiment, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    create, calls = MlflowClient.create_run, []

    def lost(self: MlflowClient, *given: Any, **named: Any) -> Any:
        run = create(self, *given, **named)
        calls.append(run)
        if len(calls) == 1:
            raise LOST
        return run

    monkeypatch.setattr(MlflowClient, "create_run", lost)
    tracker = start_run(experiment, name="train", kind="uml", tags={})
    tracker.log_metrics([MetricPoint("val/accuracy", 0.5)])
    (record,) = [run for run in experiment_runs(experiment.tracking.uri, experiment.name) if run.name == "train"]
    assert record.run_id == tracker.run_id == calls[0].info.run_id
    assert len(clock) == 1


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("test/class_accuracy/C++", "test/class_accuracy/C__"),
        ("val/accuracy", "val/accuracy"),
        ("a: é-b.c", "a: é-b.c"),
    ],
)
def test_metric_names(experiment: Experiment, name: str, taken: str) -> None:
    assert metric_name(name) == taken
    tracker = start_run(experiment, name="run", kind="uml", tags={})
    tracker.log_metrics([MetricPoint(name, 1.0)])
    assert set(experiment_runs(experiment.tracking.uri, experiment.name)[0].metrics) == {taken}


class Guarded(BaseHTTPRequestHandler):
    """Answers as a tracking server behind a login does, to what a client asks first."""

    def do_GET(self) -> None:
        wanted = "Basic " + base64.b64encode(b"ada:lovelace").decode()
        allowed = self.headers.get("Authorization") == wanted or self.path == "/health"
        found = {"experiment": {"experiment_id": "7", "name": "pets", "artifact_location": "x"}}
        body = (
            json.dumps(found).encode() if allowed else b"You are not authenticated."
        )  # as MLflow's basic-auth says it
        self.send_response(200 if allowed else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *given: Any) -> None:
        """Say nothing."""


@pytest.fixture
def guarded_server() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Guarded)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_credentials_come_from_the_environment(guarded_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrackingConfig(uri=guarded_server)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "byron")
    for call in (lambda: open_experiment(config, "pets"), lambda: experiment_runs(guarded_server, "pets")):
        with pytest.raises(InputError, match=r"does not let this user in; set MLFLOW_TRACKING_USERNAME") as refusal:
            call()
        assert "byron" not in str(refusal.value)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "lovelace")
    assert open_experiment(config, "pets") == "7"


def test_a_database_without_its_driver_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise ModuleNotFoundError("No module named 'psycopg'", name="psycopg")

    monkeypatch.setattr("sqlalchemy.create_engine", missing)
    with pytest.raises(InputError, match=r"postgresql://db/x needs package psycopg\[binary\]") as refusal:
        open_experiment(TrackingConfig(uri="postgresql://ada:lovelace@db/x"), "pets")
    assert "lovelace" not in str(refusal.value)


@pytest.mark.parametrize(
    ("address", "why"),
    [("http://127.0.0.1:9", "refused"), ("storage.example:9000", "it is not of the form http://HOST:PORT")],
)
def test_a_mistyped_address_of_artifacts_is_said_at_once(
    address: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", address)
    tracking = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db", artifacts="s3://uml-artifacts")
    check_artifacts.cache_clear()
    with pytest.raises(InputError, match=f"MLFLOW_S3_ENDPOINT_URL is {address}, where no storage answers .*{why}"):
        open_experiment(tracking, "pets")


def test_the_file_of_a_sqlite_uri(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    with pytest.raises(InputError, match="does not exist"):
        check_has_runs(f"sqlite:///{file}?timeout=5", lost="no runs")
    file.touch()
    check_has_runs(f"sqlite:///{file}?timeout=5", lost="no runs")
    notes = tmp_path / "notes.txt"
    notes.write_text("a file of another kind", encoding="utf-8")
    with pytest.raises(InputError, match="a file of another kind"):
        experiment_runs(f"sqlite:///{notes}", "pets")


def test_a_deleted_experiment_and_other_tables_are_one_line(tmp_path: Path) -> None:
    experiment = parse_experiment(vector_tree(tmp_path))
    tracking = experiment.tracking
    number = open_experiment(tracking, experiment.name)
    MlflowClient(tracking.uri).delete_experiment(number)
    for call in (lambda: open_experiment(tracking, experiment.name), lambda: log_embedding(experiment, {})):
        with pytest.raises(InputError, match=rf"is deleted; .* restore --experiment-id {number}"):
            call()
    with sqlite3.connect(tmp_path / "mlflow.db") as file:
        file.execute("DROP TABLE latest_metrics")
    with pytest.raises(InputError, match="cannot be written: no such table: latest_metrics"):
        add_to_runs(tracking, [Addition("run", [MetricPoint("val/nll", 1.0)], {})])
