"""The self-supervised thread on real files: embed, train with its twin, evaluate, predict, tune; two workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from pipelines.advise import step as advise
from pipelines.embed import step as embed
from pipelines.evaluate import step as evaluate
from pipelines.predict import step as predict
from pipelines.report import step as report
from pipelines.run_data import load_data
from pipelines.train import step as train
from pipelines.tune import step as tune
from tests.conftest import tracking_in
from tests.sequence_corpora import waves
from uml_core.config import Experiment, parse_experiment
from uml_core.errors import InputError
from uml_core.tracking.reading import download, find_run
from uml_core.tracking.records import run_kind
from uml_core.training.run import TrainingRun

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Waves as Parquet lists, unlabelled waves of another width as an array, and words as bytes; embedded."""
    directory = tmp_path_factory.mktemp("waves")
    sequences, labels, splits = waves(4, seed=1)
    columns: dict[str, Any] = {"tokens": [each.tolist() for each in sequences], "label": labels, "split": splits}
    pq.write_table(pa.table(columns), directory / "target.parquet")
    others, _, _ = waves(6, seed=2, splits=("train",) * 9)
    array = np.full((len(others), 12, 6), np.nan, dtype=np.float32)
    for row, tokens in zip(array, others, strict=True):
        row[: len(tokens)] = tokens
    np.save(directory / "other.npy", array)
    (directory / "words.jsonl").write_text("\n".join(f'{{"text": "wave {index}"}}' for index in range(12)))
    byte_tokens = {"source": "package", "name": "bytes", "pooling": "tokens"}
    tree = {
        "name": "waves",
        "store": str(directory / "store"),
        "tracking": tracking_in(directory),
        "objective": "self_supervised",
        "target": "target",
        "corpora": {
            "target": {"modality": "sequence", "format": "tokens", "path": str(directory / "target.parquet")},
            "other": {"modality": "sequence", "format": "tokens", "path": str(directory / "other.npy")},
            "words": {
                "modality": "text",
                "format": "table",
                "path": str(directory / "words.jsonl"),
                "encoder": byte_tokens,
            },
        },
        "sequence_model": {"width": 8, "heads": 2, "layers": 2, "feedforward": 16},
        "train": {"max_steps": 30, "eval_every": 15, "batch_size": 6},
        "optim": {"warmup_steps": 0, "lr": 0.01},
    }
    settings = parse_experiment(tree)
    results = embed.run(settings).results["corpora"]
    assert {name: (facts["rows"], facts["dim"]) for name, facts in results.items()} == {
        "target": (54, 4),
        "other": (27, 6),
        "words": (12, 1),
    }
    assert all(facts["up_to_date"] for facts in embed.run(settings).results["corpora"].values())
    return settings


@pytest.fixture(scope="module")
def settings(experiment: Experiment) -> Experiment:
    """Batches that two workers cannot share evenly."""
    changes = {"sequence_model.dropout": 0.0, "train.batch_size": 5, "mixing.batch_ratio.words": 0.3}
    return experiment.override({**changes, "train.workers": 2})


@pytest.fixture(scope="module")
def trained(settings: Experiment) -> dict[str, Any]:
    return train.run(settings).results


def test_two_workers_equal_one_on_the_joined_batch(
    settings: Experiment, trained: dict[str, Any], tmp_path: Path
) -> None:
    file = f"runs:/{trained['run_id']}/weights/model.safetensors"
    two = load_file(download(settings.tracking.uri, file, tmp_path))
    one = TrainingRun(settings, load_data(settings))
    for _ in one.evaluations():
        pass
    width = settings.sequence_model.width
    for name, value in one.load_best().state_dict().items():
        difference = (value - two[name]).abs()
        if name.endswith("attention_in.bias"):
            difference[width : 2 * width] = 0  # no loss depends on the keys' bias: Adam steps along rounding errors
        assert difference.max() < 1e-3, name


def test_train_evaluate_and_predict_agree(settings: Experiment, trained: dict[str, Any], tmp_path: Path) -> None:
    record = find_run(settings.tracking, trained["run_id"])
    assert (record.status, record.kind) == ("FINISHED", "uml")
    for name in ("train/loss/target", "train/loss/other", "train/loss/words", "val/accuracy", "test/accuracy"):
        assert name in record.metrics, name
    assert run_kind(settings.unimodal_twin()) == "unimodal"

    evaluated = evaluate.run(settings, trained["run_id"]).results
    assert evaluated["test/accuracy"] == pytest.approx(trained["test_accuracy"])
    assert {"probe/untrained/test_accuracy", "probe/raw/test_accuracy"} <= set(evaluated)
    with pytest.raises(InputError, match="shared head"):
        evaluate.run(settings, trained["run_id"], analyses=["margins"])

    stored = pq.read_table(settings.corpora["target"].path)
    tests = stored.filter(pa.array([split == "test" for split in stored["split"].to_pylist()]))
    pq.write_table(tests.drop_columns(["label", "split"]), tmp_path / "new.parquet")
    uri, output = settings.tracking.uri, tmp_path / "out.parquet"
    predicted = predict.run(f"runs:/{trained['run_id']}/model", str(tmp_path / "new.parquet"), str(output), uri)
    assert predicted.results["rows"] == 18
    predictions = pq.read_table(output).to_pydict()
    hits = [one == other for one, other in zip(predictions["prediction"], tests["label"].to_pylist(), strict=True)]
    assert np.mean(hits) == pytest.approx(trained["test_accuracy"])
    mlflow.set_tracking_uri(uri)
    served = mlflow.pyfunc.load_model(trained["model_uri"])
    frame = served.predict(pd.DataFrame({"tokens": tests["tokens"].to_pylist()}))
    assert frame["prediction"].tolist() == predictions["prediction"]
    array_NTD = np.array(tests["tokens"].slice(0, 1).to_pylist())
    assert served.predict(array_NTD)["prediction"].tolist() == predictions["prediction"][:1]


def test_the_sweep_compares_with_noise(experiment: Experiment, tmp_path: Path) -> None:
    settings = experiment.override({"tune.seeds": 3, "train.max_steps": 15, "tune.max_concurrent_trials": 1})
    results = tune.run(settings, "self_supervised").results
    assert (results["trials"], results["failed"]) == (3 * 6, 0)
    assert "3 seeds)" in results["verdict"], "with so few steps it may be undecided"
    page = report.run(settings, tmp_path / "report").results
    assert Path(page["report"]).stat().st_size > 10_000


def test_what_is_for_supervised_runs_is_refused(experiment: Experiment) -> None:
    with pytest.raises(InputError, match="objective supervised"):
        advise.run(experiment)
    with pytest.raises(InputError, match="objective=self_supervised"):
        tune.run(experiment.override({"objective": "supervised"}), "self_supervised")
    with pytest.raises(InputError, match="sequences of tokens"):
        train.run(experiment.override({"objective": "supervised"}))
