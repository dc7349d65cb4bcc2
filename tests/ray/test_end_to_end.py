"""The whole thread on real files: embed, train, tune, evaluate, predict, report; and the known answers."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from pipelines import embed, evaluate, predict, report, train, tune
from pipelines.stored import read_training_data
from tests.conftest import CLASSES, draw, picture_tree, write_picture_corpora
from uml_core.config import load_experiment, parse_experiment
from uml_core.corpora.known_answer import write_known_answer
from uml_core.tracking import download, find_run

pytestmark = pytest.mark.usefixtures("ray_cluster")


def write_new_pictures(directory: Path) -> Path:
    """Write a picture of every class in a folder below, and one that is none."""
    (directory / "deep").mkdir(parents=True)
    rng = np.random.default_rng(7)
    for label in CLASSES:
        draw(label, rng).save(directory / "deep" / f"{label}.png")
    (directory / "broken.jpg").write_bytes(b"no picture")
    return directory


def test_the_whole_thread_on_pictures_and_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_picture_corpora(tmp_path)
    tree = picture_tree(tmp_path)
    experiment = parse_experiment({**tree, "train": {**tree["train"], "max_steps": 100}, "optim": {"lr": 0.01}})
    embed.run(experiment)
    trained = train.run(experiment).results
    assert trained["test_accuracy"] > 0.6, "circles, squares and stripes are easy"

    evaluated = evaluate.run(experiment, trained["run_id"]).results
    assert evaluated["test/accuracy"] == pytest.approx(trained["test_accuracy"])
    assert evaluated["shift/dark/accuracy"] == pytest.approx(trained["shift_accuracy"]["dark"])
    record = find_run(experiment.tracking, trained["run_id"])
    assert record.metrics["probe/linear/test_accuracy"] == pytest.approx(evaluated["probe/linear/test_accuracy"])
    recalls = [record.metrics[f"test/class_accuracy/{label}"] for label in CLASSES]
    assert np.mean(recalls) == pytest.approx(evaluated["test/balanced_accuracy"])

    explained = evaluate.run(experiment, trained["run_id"], analyses=evaluate.AnalysisRequest(("margins", "neurons")))
    assert explained.results["analysis/margins/positive_share"] == pytest.approx(trained["test_accuracy"])
    assert "fewer than 8 class-mean pairs" in explained.text, "three classes cannot be tested, and the step says so"
    logged = find_run(experiment.tracking, trained["run_id"]).metrics
    assert logged["analysis/margins/silhouette"] == pytest.approx(explained.results["analysis/margins/silhouette"])
    figures = download(experiment.tracking.uri, f"runs:/{trained['run_id']}/analysis", tmp_path / "fetched")
    assert {"margins.svg", "margins.png", "margins.txt"} <= {file.name for file in figures.iterdir()}

    asked = {"evaluation.evaluators": ["corruptions"], "evaluation.corruptions": ["blur", "contrast"]}
    damaged = evaluate.run(experiment.override(asked), trained["run_id"], against=[trained["run_id"]]).results
    assert damaged["corruption/clean_accuracy"] == pytest.approx(trained["test_accuracy"]), "encoded again from files"
    assert (damaged["against/difference"], damaged["against/mcnemar_p"]) == (0, 1)
    logged = find_run(experiment.tracking, trained["run_id"]).metrics
    curve = [logged[f"corruption/contrast/{severity}/accuracy"] for severity in range(1, 6)]
    assert np.mean(curve) == pytest.approx(damaged["corruption/contrast/accuracy"])
    files = download(experiment.tracking.uri, f"runs:/{trained['run_id']}/evaluation", tmp_path / "fetched")
    assert {"test/confusion.svg", "test/classes.csv", "corruption/curve.png", "corruption/curve.txt"} <= {
        str(file.relative_to(files)) for file in files.rglob("*")
    }

    subset = download(experiment.tracking.uri, f"runs:/{trained['run_id']}/subset.json", tmp_path / "fetched")
    drawn = read_training_data(experiment).data
    again = read_training_data(experiment.override({"data.subset": str(subset), "data.split_seed": 9})).data
    assert again.labelled.rows.tolist() == drawn.labelled.rows.tolist()
    assert again.val.rows.tolist() == drawn.val.rows.tolist()

    new = write_new_pictures(tmp_path / "new")
    output = tmp_path / "out" / "predictions.parquet"
    uri = experiment.tracking.uri
    monkeypatch.setattr(predict, "PART_ROWS", 2)  # four inputs, listed in two windows
    monkeypatch.setattr(predict, "WINDOW_PARTS", 1)
    results = predict.run(f"runs:/{trained['run_id']}/model", str(new), str(output), uri).results
    assert (results["rows"], results["rejected_rows"]) == (3, 1)
    predictions = pq.read_table(output).to_pydict()
    assert list(predictions) == ["id", "prediction", "probability"]
    assert predictions["id"] == [f"deep/{label}.png" for label in sorted(CLASSES)]
    assert set(predictions["prediction"]) <= set(CLASSES)
    rejected = pq.read_table(output.with_name("predictions.rejected.parquet")).to_pylist()
    assert rejected == [{"id": "broken.jpg", "reason": "not a picture in a known format"}]

    # The same model through MLflow's own loading, as `mlflow models serve` does it: raw file bytes in.
    mlflow.set_tracking_uri(uri)
    served = mlflow.pyfunc.load_model(trained["model_uri"])
    contents = [(new / row).read_bytes() for row in predictions["id"]]
    frame = served.predict(pd.DataFrame({"content": contents}))
    assert frame["prediction"].tolist() == predictions["prediction"]
    assert frame["probability"].tolist() == pytest.approx(predictions["probability"], abs=1e-4)

    fewer = {
        "data.shots": 2,
        "tune.seeds": 2,
        "tune.mixing": ["loss_weight", "schedule"],
        "tune.loss_weights": [0.3, 1],
    }
    swept = tune.run(experiment.override(fewer), "mixing_ratio").results
    assert swept["trials"] == 2 * (4 + 4)
    page = report.run(experiment, tmp_path / "report").results
    assert page["verdict_kind"] == "undecided", "two seeds and no controls decide nothing"
    assert Path(page["report"]).stat().st_size > 10_000


@pytest.mark.parametrize(("shared", "kind"), [(True, "gain"), (False, "harm")])
def test_the_pipeline_finds_the_known_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    written = write_known_answer(tmp_path / "synthetic", shared=shared)
    tracking = [f"tracking.uri=sqlite:///{tmp_path}/mlflow.db", f"tracking.artifacts={tmp_path}/artifacts"]
    experiment = load_experiment(written.experiment, tracking)
    embed.run(experiment)
    results = tune.run(experiment, "controls").results
    assert results["verdict_kind"] == kind, json.dumps(results)
    if shared:
        assert "beyond the shuffled control" in results["verdict"]
    else:
        assert results["verdict"].startswith("Warning, harm")
