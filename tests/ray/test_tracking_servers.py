"""Sweeps and runs on real servers: `mlflow server` that goes away in the middle, and PostgreSQL.

And planted secrets: whatever a user may give as one stands in nothing that a step writes, shows or logs.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import pwd
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from cluster.rehearsal import free_port
from pipelines.embed import __main__ as embed_line
from pipelines.embed import step as embed
from pipelines.predict import step as predict
from pipelines.report import __main__ as report_line
from pipelines.status import __main__ as status_line
from pipelines.train import __main__ as train_line
from pipelines.tune import __main__ as tune_line
from pipelines.tune import step as tune
from tests.conftest import vector_tree, write_embeddings, write_vector_corpora
from tests.ray.test_tune import ONE_AT_A_TIME, write_space
from tests.servers import MLflowServer
from uml_core.config import TrackingConfig, parse_experiment
from uml_core.errors import InputError
from uml_core.files.paths import remote
from uml_core.serving.target_predictor import TargetPredictor
from uml_core.tracking.reading import experiment_runs, find_run, load_predictor, sweep_runs
from uml_core.tracking.records import MetricPoint, RunRecord
from uml_core.tracking.uri import check_tracking
from uml_core.tracking.writing import open_experiment, start_run

INITDB = shutil.which("initdb") or next((str(path) for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")), None)
NO_POSTGRES = next(
    (
        reason
        for missing, reason in (
            (INITDB is None, "PostgreSQL is not installed (initdb)"),
            (importlib.util.find_spec("psycopg") is None, "psycopg is not installed"),
        )
        if missing
    ),
    "",
)


PLANTED = "planted-7f3a"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    """A running MLflow server; it takes nine seconds of CPU to start."""
    running = MLflowServer(tmp_path_factory.mktemp("server"))
    running.start()
    yield running
    running.stop()


@pytest.mark.usefixtures("ray_cluster")
def test_a_server_that_goes_away_loses_nothing(
    server: MLflowServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_vector_corpora(tmp_path)
    tracking = {"uri": server.uri, "artifacts": "unused"}
    tree = vector_tree(tmp_path, name="served", tracking=tracking, data={"shots": 2})
    experiment = parse_experiment(tree).override(ONE_AT_A_TIME)
    embed.run(experiment)

    def outage() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not logged():
            time.sleep(0.05)
        server.stop()
        time.sleep(2)
        server.start()

    def logged() -> bool:
        return any(run.kind == "trial" for run in experiment_runs(server.uri, "served"))

    away = threading.Thread(target=outage)
    away.start()
    results = tune.run(experiment, write_space(tmp_path, "(1e-3, 1e-2)")).results
    away.join()
    lines = [record.message for record in caplog.records if record.name == "uml_core.tracking.client"]
    assert any("does not answer; waiting" in line for line in lines)
    assert any("answers again after" in line for line in lines)
    parent, *trials = sweep_runs(experiment, results["run_id"])
    assert parent.status == "FINISHED"
    assert len(trials) == len({trial.tags["uml.trial"] for trial in trials}) == results["trials"] == 8
    assert all(trial.status == "FINISHED" and "val/accuracy" in trial.metrics for trial in trials)
    assert sum("test/accuracy" in trial.metrics for trial in trials) == 4
    everything = experiment_runs(server.uri, "served")
    assert len(everything) == 8 + 2, "the sweep, its trials, and the run of embed: nothing twice"

    rows = [row for row in pq.read_table(tmp_path / "target.parquet").to_pylist() if row["split"] == "test"]
    write_embeddings(tmp_path / "new.parquet", {"embedding": [row["embedding"] for row in rows]})
    predicted = predict.run(results["model"], str(tmp_path / "new.parquet"), str(tmp_path / "out.parquet"), server.uri)
    assert predicted.results["rows"] == len(rows)


class Postgres:
    """A PostgreSQL server of its own; it does not run as root, so root hands it to the user postgres."""

    def __init__(self, directory: Path) -> None:
        assert INITDB is not None
        self._directory, port = directory, free_port()
        self.uri = f"postgresql://uml:secret@127.0.0.1:{port}/postgres"
        self._prefix: list[str] = []
        if os.geteuid() == 0:
            owner = pwd.getpwnam("postgres")
            os.chown(directory, owner.pw_uid, owner.pw_gid)
            self._prefix = ["runuser", "-u", "postgres", "--"]
        binaries, data = Path(INITDB).resolve().parent, str(directory / "data")
        self._run(str(binaries / "initdb"), "-D", data, "-A", "trust", "-U", "uml")
        self._control = [str(binaries / "pg_ctl"), "-D", data, "-w"]
        self._options = f"-p {port} -k {directory} -c listen_addresses=127.0.0.1"

    def start(self) -> None:
        self._run(*self._control, "-o", self._options, "-l", str(self._directory / "log"), "start")

    def stop(self) -> None:
        self._run(*self._control, "-m", "immediate", "stop")

    def _run(self, *line: str) -> None:
        subprocess.run([*self._prefix, *line], check=True, stdout=subprocess.DEVNULL, cwd=self._directory)


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    with tempfile.TemporaryDirectory() as directory:  # another user must be able to enter it: not below pytest's own
        database = Postgres(Path(directory))
        database.start()
        yield database
        database.stop()


@pytest.mark.skipif(bool(NO_POSTGRES), reason=NO_POSTGRES)
def test_runs_and_models_on_a_postgresql_that_restarts(postgres: Postgres, tmp_path: Path) -> None:
    tracking = TrackingConfig(uri=postgres.uri, artifacts=str(tmp_path / "artifacts"))
    experiment = parse_experiment(vector_tree(tmp_path, name="sql", tracking=tracking.model_dump()))
    with pytest.raises(InputError, match=r"cannot be used: .*role \"ada\" does not exist; see to its address") as said:
        check_tracking(postgres.uri.replace("uml:secret", "ada:lovelace"))
    assert "lovelace" not in str(said.value)
    open_experiment(tracking, "sql")
    parent = start_run(experiment, name="sweep", kind="sweep", tags={})
    child = start_run(experiment, name="trial", kind="trial", tags={"uml.arm": "uml"}, parent_run_id=parent.run_id)
    child.log_metrics([MetricPoint("val/accuracy", 0.5, step) for step in range(1500)])
    postgres.stop()
    restart = threading.Timer(1.0, postgres.start)
    restart.start()
    child.log_metrics([MetricPoint("test/class_accuracy/C++", 1.0)])
    restart.join()
    predictor = TargetPredictor(("a", "b"), "vector", None, "float32", False, np.eye(2, dtype=np.float32))
    logged, tags = child.log_predictor(predictor, tmp_path / "predictor"), {"uml.sweep": "s"}
    model = child.register_model(logged, "sql", tags=tags, alias="best")
    again = child.register_model(model, "sql", tags=tags, alias="best")
    version = child.register_model(logged, "sql", tags={"uml.kind": "uml"}, alias=None)
    child.finish()
    assert (model, again, version) == ("models:/sql@best", "models:/sql@best", "models:/sql/2")
    assert load_predictor(postgres.uri, model, tmp_path / "fetched").classes == ("a", "b")
    found = sweep_runs(experiment, parent.run_id)
    assert [record.arm for record in found] == ["", "uml"]
    assert find_run(tracking, child.run_id).metrics == {"val/accuracy": 0.5, "test/class_accuracy/C__": 1.0}
    assert found[1].params["optim.lr"] == "0.001"


def test_a_server_with_passwords(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_vector_corpora(tmp_path)
    server = MLflowServer(tmp_path, password="right-one-123")
    tree = vector_tree(tmp_path, name="closed", tracking={"uri": server.uri})
    file = tmp_path / "experiment.yaml"
    file.write_text(parse_experiment(tree).to_yaml(), encoding="utf-8")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    server.start()
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong-one-123")
        assert embed_line.main([str(file), f"store={tmp_path}/refused"]) == 2
        said = capsys.readouterr().err
        assert "does not let this user in; set MLFLOW_TRACKING_USERNAME" in said
        assert "wrong-one" not in said
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "right-one-123")
        assert embed_line.main([str(file)]) == 0
        assert [(run.kind, run.status) for run in experiment_runs(server.uri, "closed")] == [("embed", "FINISHED")]
    finally:
        server.stop()


@pytest.mark.skipif(bool(NO_POSTGRES), reason=NO_POSTGRES)
def test_fifty_trials_while_server_and_database_restart(postgres: Postgres, s3_bucket: str, tmp_path: Path) -> None:
    """On a server as it is meant for many users: PostgreSQL, and artifacts on object storage."""
    write_vector_corpora(tmp_path)
    database = postgres.uri.replace("postgresql:", "postgresql+psycopg:")
    server = MLflowServer(tmp_path, database=database, artifacts=f"{s3_bucket}/mlflow")
    tracking = TrackingConfig(uri=server.uri)
    experiment = parse_experiment(vector_tree(tmp_path, name="fifty", tracking={"uri": server.uri}, tune={"seeds": 9}))
    reached: list[int] = []

    def trials() -> list[RunRecord]:
        return [run for run in experiment_runs(server.uri, "fifty") if run.kind == "trial"]

    def outages() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not trials():
            time.sleep(0.05)
        server.stop()
        server.start()
        reached.append(len(trials()))
        postgres.stop()
        time.sleep(1)
        postgres.start()

    away = threading.Thread(target=outages)
    server.start()
    try:
        open_experiment(tracking, "fifty")  # in which trials are looked for from the start
        embed.run(experiment)
        away.start()
        tune.run(experiment, "closed_form")
        away.join()
        assert 0 < reached[0] < 54
        assert len(trials()) == len({trial.tags["uml.trial"] for trial in trials()}) == 54
        assert all(trial.status == "FINISHED" and "val/accuracy" in trial.metrics for trial in trials())
    finally:
        server.stop()


def test_no_secret_is_written_or_shown(
    server: MLflowServer,
    s3_bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "uml_core")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"{PLANTED}-storage")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", f"{PLANTED}-mlflow")
    monkeypatch.setenv("RAY_AUTH_TOKEN", f"{PLANTED}-token")
    write_vector_corpora(tmp_path)
    tracking = {"uri": server.uri.replace("://", f"://uml:{PLANTED}-user@")}
    tree = vector_tree(tmp_path, store=f"{s3_bucket}/run/store", tracking=tracking, tune={"seeds": 2})
    file = tmp_path / "pets.yaml"
    shown = tmp_path / "written"
    shown.mkdir()
    file.write_text(parse_experiment(tree).to_yaml(), encoding="utf-8")
    statuses = []
    for step, flags in (
        (embed_line, []),
        (train_line, ["train.max_steps=2"]),
        (tune_line, ["--space", "closed_form"]),
        (report_line, ["--output", str(shown / "page"), "--timings"]),
        (status_line, []),
        (train_line, ["--dry-run"]),
        (tune_line, ["--space", "nonsense"]),
    ):
        statuses.append(step.main([str(file), *flags]))
    assert statuses == [0] * 6 + [2]
    said = capfd.readouterr()
    assert "closed_form: " in said.out
    assert PLANTED not in said.out + said.err + caplog.text
    filesystem, path = remote(s3_bucket)
    infos = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    stored = [filesystem.open_input_stream(info.path).read() for info in infos if info.type == pafs.FileType.File]
    kept = [
        written.read_bytes()
        for folder in (tmp_path, server.directory)
        for written in folder.rglob("*")
        if written.is_file() and written != file
    ]
    assert len(stored) > 5
    assert len(kept) > 10, "the server's database, artifacts, the page"
    assert not [content[:200] for content in [*stored, *kept] if PLANTED.encode() in content]


@pytest.mark.parametrize("key", ["store", "corpora.target.path"])
def test_a_place_with_a_password_is_refused_without_saying_it(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_vector_corpora(tmp_path)
    file = tmp_path / "pets.yaml"
    file.write_text(parse_experiment(vector_tree(tmp_path)).to_yaml(), encoding="utf-8")
    assert embed_line.main([str(file), f"{key}=s3://key:{PLANTED}@bucket/x"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {key} holds a key and its secret before the @")
    assert PLANTED not in said
