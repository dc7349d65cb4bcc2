"""What a user gets wrong: one line on stderr, exit status 2, no traceback, nothing half-written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.embed import __main__ as embed
from pipelines.evaluate import __main__ as evaluate
from pipelines.predict import __main__ as predict
from pipelines.report import __main__ as report
from pipelines.train import __main__ as train
from pipelines.tune import __main__ as tune
from tests.conftest import vector_tree, write_embeddings, write_vector_corpora
from uml_core.config import parse_experiment

Main = Callable[[list[str] | None], int]


def write_experiment(directory: Path) -> Path:
    """Write corpora of ready embeddings, and an experiment file over them."""
    write_vector_corpora(directory)
    path = directory / "experiment.yaml"
    path.write_text(parse_experiment(vector_tree(directory)).to_yaml(), encoding="utf-8")
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_experiment(tmp_path)


@pytest.fixture(scope="module")
def embedded_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment whose corpora are embedded, once for the tests that only read the store."""
    directory = tmp_path_factory.mktemp("embedded")
    file = write_experiment(directory)
    assert embed.main([str(file)]) == 0
    return file


def refused(capsys: pytest.CaptureFixture[str], main: Main, *arguments: str) -> str:
    """Run a step; assert the contract of a user's mistake and return its line."""
    capsys.readouterr()
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    return lines[0]


@pytest.mark.parametrize("main", [embed.main, train.main, evaluate.main, report.main], ids=lambda main: main.__module__)
def test_every_step_refuses_a_bad_file_and_a_bad_key(
    capsys: pytest.CaptureFixture[str], main: Main, file: Path, tmp_path: Path
) -> None:
    assert "does not exist" in refused(capsys, main, str(tmp_path / "none.yaml"))
    assert "did you mean 'optim'" in refused(capsys, main, str(file), "optm.lr=1")
    assert "is -1" in refused(capsys, main, str(file), "mixing.loss_weight.names=-1")


def test_dry_run_prints_the_resolved_experiment_and_stops(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    assert train.main([str(file), "optim.lr=0.5", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "lr: 0.5" in printed
    assert not (file.parent / "store").exists()


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("corpora.names.path=/nowhere", "corpora.names.path is /nowhere"),
        ("corpora.names={modality: text, format: table, path: EMPTY}", "corpora.names is empty"),
        ("corpora.names={modality: text, format: table, path: MIXED}", "labels of mixed types"),
        ("corpora.names.path=NAN", "embedding with NaN"),
        ("corpora.names.path=HALF_NAN", "1 of 4 rows cannot be read (25.0%"),
        ("store=nope://bucket", "store is nope://bucket"),
    ],
)
def test_corpora_that_cannot_be_embedded(
    capsys: pytest.CaptureFixture[str], file: Path, tmp_path: Path, override: str, part: str
) -> None:
    (tmp_path / "empty.jsonl").touch()
    records: list[Any] = [{"text": "x", "label": 1}, {"text": "y", "label": "1"}]
    (tmp_path / "mixed.jsonl").write_text("\n".join(map(json.dumps, records)))
    write_embeddings(tmp_path / "nan.parquet", {"label": ["a"], "embedding": [[np.nan]]})
    write_embeddings(tmp_path / "half.parquet", {"label": [*"abcd"], "embedding": [[1], [2], [3], [np.nan]]})
    for name, path in {
        "EMPTY": "empty.jsonl",
        "MIXED": "mixed.jsonl",
        "HALF_NAN": "half.parquet",
        "NAN": "nan.parquet",
    }.items():
        override = override.replace(name, str(tmp_path / path))
    assert part in refused(capsys, embed.main, str(file), override)
    assert not list((tmp_path / "store").glob("names/*/manifest.json"))


def test_training_before_embedding_or_with_another_encoder(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    assert "run python -m pipelines.embed" in refused(capsys, train.main, str(file))
    assert embed.main([str(file)]) == 0
    write_vector_corpora(file.parent, seed=1)  # other files, so another fingerprint
    assert "embedded by another encoder or setting" in refused(capsys, train.main, str(file))


def test_a_run_whose_classes_have_changed_since(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    assert embed.main([str(file)]) == 0
    assert train.main([str(file), "model.head=ridge"]) == 0
    write_vector_corpora(file.parent, num_classes=7)
    assert embed.main([str(file)]) == 0
    said = refused(capsys, evaluate.main, str(file))
    assert "was trained on 6 classes, and the store has 7 for it now (new: class-6); train again" in said


@pytest.mark.parametrize(
    ("uri", "part"),
    [
        ("http://127.0.0.1:9", "cannot be reached"),
        ("runs/mlruns", "MLflow 3 writes no plain folders"),
        ("sqlite:////proc/none/mlflow.db", "cannot be written"),
        ("nope://x", "cannot be used"),
    ],
)
@pytest.mark.parametrize("main", [train.main, report.main], ids=["train", "report"])
def test_tracking_that_cannot_be_reached(
    capsys: pytest.CaptureFixture[str], embedded_file: Path, main: Main, uri: str, part: str
) -> None:
    if main is report.main and uri.startswith("sqlite"):  # which only reads
        part = "does not exist"
    assert part in refused(capsys, main, str(embedded_file), f"tracking.uri={uri}")
    assert not (embedded_file.parent / "store" / "_runs").exists()


def test_runs_spaces_and_models_that_do_not_exist(
    capsys: pytest.CaptureFixture[str], file: Path, tmp_path: Path
) -> None:
    assert "has no experiment 'vectors'" in refused(capsys, report.main, str(file))
    assert "--run is 0123" in refused(capsys, evaluate.main, str(file), "--run", "0123")
    assert "did you mean 'knn_probe'" in refused(capsys, evaluate.main, str(file), "--evaluators", "knn_prob")
    assert "paired in their order" in refused(capsys, evaluate.main, str(file), "--run", "0,1", "--against", "2")
    assert "did you mean 'neurons'" in refused(capsys, evaluate.main, str(file), "--analyses", "margins,nuerons")
    assert "add --analyses neurons" in refused(capsys, evaluate.main, str(file), "--pairs", "pairs.csv")
    assert "did you mean 'controls'" in refused(capsys, tune.main, str(file), "--space", "contrls")
    database = f"sqlite:///{tmp_path}/mlflow.db"
    line = ["--input", str(tmp_path), "--output", str(tmp_path / "out.parquet"), "--tracking-uri", database]
    assert "cannot be fetched" in refused(capsys, predict.main, "--model", "runs:/0123/model", *line)
    assert "holds no target model" in refused(capsys, predict.main, "--model", str(tmp_path), *line)
    bad_output = [*line[:3], str(tmp_path / "out.csv"), *line[4:]]
    assert "ends in .parquet" in refused(capsys, predict.main, "--model", str(tmp_path), *bad_output)
    for flag, given in (("--top", "-1"), ("--top", "few"), ("--max-rejected", "5")):
        assert f"{flag} is {given}; give a number" in refused(capsys, predict.main, "--model", "x", *line, flag, given)
    assert not (tmp_path / "out.parquet").exists()
