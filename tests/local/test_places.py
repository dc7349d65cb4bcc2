"""One rule for places: every step reads from and writes to object storage, and nothing is lost with a Ray job."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.advise import step as advise
from pipelines.bridge import main as bridge_main
from pipelines.command_line import with_absolute_paths
from pipelines.embed import step as embed
from pipelines.evaluate import step as evaluate
from pipelines.export import __main__ as export_command
from pipelines.export import step as export
from pipelines.gc import step as gc
from pipelines.places import OutputFolder, absolute_path, check_no_password, written_place
from pipelines.predict import __main__ as predict_command
from pipelines.predict import step as predict
from pipelines.predict.step import SCHEMA, ParquetFile
from pipelines.report import __main__ as report_command
from pipelines.report import step as report
from pipelines.status import step as status
from pipelines.theory import __main__ as theory_command
from pipelines.train import step as train
from pipelines.tune import step as tune
from tests.conftest import vector_tree, write_vector_corpora
from tests.servers import FaultyS3
from uml_core.config import parse_experiment
from uml_core.errors import InputError
from uml_core.files.paths import open_bytes, remote
from uml_core.tracking.reading import download


def contents(place: str) -> bytes:
    with open_bytes(place) as file:
        return file.read()


def test_every_step_on_object_storage(
    s3_bucket: str, s3_server: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an address in the URI; with one in the environment, as in `make cluster`, paths have no query to keep.

    One answer in five fails, and nothing comes to another end than on a disk.
    """
    query = f"?endpoint_override={os.environ['AWS_ENDPOINT_URL'].removeprefix('http://')}&scheme=http"
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    write_vector_corpora(tmp_path)
    tree = vector_tree(tmp_path, store=f"{s3_bucket}/run/store{query}", model={"head": "prior"}, tune={"seeds": 2})
    filesystem, path = remote(f"{s3_bucket}/corpora{query}")
    for corpus in tree["corpora"].values():  # the corpora too
        file = Path(corpus["path"])
        with filesystem.open_output_stream(f"{path}/{file.name}") as stream:
            stream.write(file.read_bytes())
        corpus["path"] = f"{s3_bucket}/corpora/{file.name}{query}"
    experiment = with_absolute_paths(parse_experiment(tree))
    apart = experiment.override({"name": "apart", "store": str(tmp_path / "store")})
    assert embed.run(apart).results["corpora"].keys() == experiment.corpora.keys()
    alone = train.run(apart).results
    s3_server.shares = {"500": 0.06, "503": 0.05, "lost": 0.05, "cut": 0.04}

    embed.run(experiment)
    assert advise.run(experiment, 2).results
    trained = train.run(experiment)
    weights = [
        download(experiment.tracking.uri, f"runs:/{run}/weights/model.safetensors", tmp_path / run).read_bytes()
        for run in (alone["run_id"], trained.results["run_id"])
    ]
    assert weights[0] == weights[1]
    tune.run(experiment, "closed_form")
    evaluate.run(experiment)
    assert status.run(experiment).results["corpora"] == dict.fromkeys(experiment.corpora, "finished")
    page = report.run(experiment).results["report"]
    assert page == f"{s3_bucket}/run/report/index.html{query}"
    assert b"<html" in contents(page)
    model, uri = trained.results["model"], experiment.tracking.uri
    inputs = experiment.corpora[experiment.target].path
    output = f"{s3_bucket}/out/predictions.parquet{query}"
    rows = predict.run(model, str(inputs), output, uri).results["rows"]
    there, where = remote(output)
    assert pq.read_table(where, filesystem=there).num_rows == rows > 0
    exported = export.run(model, f"{s3_bucket}/head{query}", uri, formats=["safetensors"])
    assert json.loads(contents(f"{s3_bucket}/head/head.json{query}"))["classes"]
    assert exported.results["output"] == f"{s3_bucket}/head{query}"
    assert gc.run(experiment, delete_them=True).results["bytes"] > 0
    assert all(s3_server.injected[fault] for fault in s3_server.shares)
    assert not list(tmp_path.glob("**/s3:*")), "nothing lies in a folder that is called as a URI"


def test_relative_places_start_at_uml_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UML_ROOT", str(tmp_path))
    assert absolute_path("runs/store") == str(tmp_path / "runs/store")
    monkeypatch.setenv("UML_ROOT", "s3://bucket/uml/")
    assert absolute_path("runs/store") == "s3://bucket/uml/runs/store"
    assert absolute_path("/data") == "/data"
    assert absolute_path("gs://other/x") == "gs://other/x"
    with pytest.raises(InputError, match=r"relative to UML_ROOT=s3://bucket/uml/.* tracking server"):
        absolute_path("sqlite:///runs/mlflow.db")


@pytest.fixture
def in_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a job that uploaded an experiment file."""
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    monkeypatch.delenv("UML_ROOT", raising=False)
    return copy


WRITERS: dict[str, tuple[Callable[[list[str]], int], list[str]]] = {
    "predict": (predict_command.main, ["--model", "models:/m@best", "--input", "/x", "--output", "out.parquet"]),
    "export": (export_command.main, ["--model", "models:/m@best", "--output", "head"]),
    "report": (report_command.main, ["experiment.yaml", "--output", "page"]),
    "bridge": (bridge_main, ["experiment.yaml", "--output", "classes"]),
    "theory": (theory_command.main, ["--output", "theory"]),
}


@pytest.mark.parametrize("step", WRITERS)
def test_results_that_would_go_with_a_job_are_refused(
    step: str, in_job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_vector_corpora(tmp_path)
    tree = vector_tree(tmp_path)
    (in_job / "experiment.yaml").write_text(parse_experiment(tree).to_yaml(), encoding="utf-8")
    main, line = WRITERS[step]
    assert main(line) == 2
    assert "--output is" in (said := capsys.readouterr().err)
    assert "a temporary copy; give an absolute place, or set UML_ROOT" in said
    assert {file.name for file in in_job.iterdir()} == {"experiment.yaml"}


@pytest.mark.parametrize("key", ["store", "tracking.uri", "tracking.artifacts"])
@pytest.mark.usefixtures("in_job")
def test_stores_that_would_go_with_a_job_are_refused(key: str, tmp_path: Path) -> None:
    experiment = parse_experiment(vector_tree(tmp_path))
    relative = "sqlite:///mlflow.db" if key == "tracking.uri" else "runs/here"
    with pytest.raises(InputError, match=f"^{key} is {relative}, relative to a Ray job's"):
        with_absolute_paths(experiment.override({key: relative}))


@pytest.mark.usefixtures("in_job")
def test_a_tracking_server_keeps_artifacts_itself(tmp_path: Path) -> None:
    experiment = parse_experiment(vector_tree(tmp_path, tracking={"uri": "http://mlflow:5000"}))
    assert with_absolute_paths(experiment).tracking.uri == "http://mlflow:5000"


def test_the_tracking_server_of_mlflows_own_variable() -> None:
    code = "from uml_core.config import TrackingConfig as T; print(T().uri, T(uri='sqlite:///x.db').uri)"
    environment = {**os.environ, "MLFLOW_TRACKING_URI": "http://mlflow:5000"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["http://mlflow:5000", "sqlite:///x.db"]


@pytest.mark.parametrize(
    ("place", "is_refused"),
    [
        ("s3://key:secret@bucket/x", True),
        ("s3://key:se/cret@bucket/x", True),
        ("s3://bucket/10:30/photo@2x.png", False),
        ("hdfs://host:8020/photo@2x.png", False),
        ("abfs://container@account/x", False),
    ],
)
def test_keys_in_places(place: str, *, is_refused: bool) -> None:
    with pytest.raises(InputError, match="holds a key") if is_refused else contextlib.nullcontext():
        check_no_password("store", place)


@pytest.mark.parametrize("given", ["", "nope://bucket/x", "/proc/none/x"])
def test_folders_that_cannot_be_written(given: str) -> None:
    with pytest.raises(InputError, match=r"^--output (is empty|is nope.* cannot be opened|/proc.* cannot be written)"):
        OutputFolder("--output", given)


def test_a_folder_in_memory_of_fsspec() -> None:
    folder = OutputFolder("--output", "memory://somewhere/page")
    assert folder.write("index.html", b"x") == "memory://somewhere/page/index.html"
    assert contents("memory://somewhere/page/index.html") == b"x"
    assert written_place("--output", "memory://somewhere/page") == folder.place


def test_predictions_that_a_killed_process_has_begun_go_and_those_of_a_living_one_stay(tmp_path: Path) -> None:
    place = str(tmp_path / "predictions.parquet")
    dead = tmp_path / f".predictions.parquet.{socket.gethostname()}.{2**22 + 1}"
    other = tmp_path / f".other.parquet.{socket.gethostname()}.{2**22 + 1}"
    for file in (dead, other):
        file.write_bytes(b"PAR1")
    with ParquetFile(place, SCHEMA):
        (living,) = set(tmp_path.iterdir()) - {other}
        with ParquetFile(str(tmp_path / "rejected.parquet"), SCHEMA):
            assert living.exists()
    assert {file.name for file in tmp_path.iterdir()} == {other.name, "predictions.parquet", "rejected.parquet"}
