"""The whole thread on real files: embed, train, tune, evaluate, predict, report; and the known answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import ray.data

from pipelines.__main__ import main as uml
from pipelines.embed import step as embed
from pipelines.embed import workers
from pipelines.evaluate import step as evaluate
from pipelines.predict import here, on_ray
from pipelines.predict import step as predict
from pipelines.report import step as report
from pipelines.run_data import load_data
from pipelines.train import step as train
from pipelines.tune import step as tune
from tests.conftest import CLASSES, draw, picture_tree, tracking_in, write_picture_corpora
from tests.ray.test_tune import ONE_AT_A_TIME
from uml_core.config import Experiment, load_experiment, parse_experiment
from uml_core.corpora.examples.known_answer import write_known_answer
from uml_core.errors import InputError
from uml_core.tracking.reading import download, find_run

pytestmark = pytest.mark.usefixtures("ray_cluster")


@dataclass(frozen=True)
class Thread:
    """Pictures and sentences, embedded, and a run trained on them."""

    experiment: Experiment
    trained: dict[str, Any]

    @property
    def run_id(self) -> str:
        return str(self.trained["run_id"])

    def metrics(self) -> Mapping[str, float]:
        """What MLflow holds of the run now."""
        return find_run(self.experiment.tracking, self.run_id).metrics

    def fetched(self, artifact: str, directory: Path) -> Path:
        """Download an artifact of the run."""
        return download(self.experiment.tracking.uri, f"runs:/{self.run_id}/{artifact}", directory)


@pytest.fixture(scope="module")
def thread(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Thread:
    """Embed and train, as every test goes on from."""
    tree = picture_tree(write_picture_corpora(tmp_path_factory.mktemp("thread")))
    experiment = parse_experiment({**tree, "train": {**tree["train"], "max_steps": 100}, "optim": {"lr": 0.01}})
    embed.run(experiment)
    return Thread(experiment, train.run(experiment).results)


def test_what_was_trained_is_what_is_evaluated(thread: Thread, tmp_path: Path) -> None:
    trained = thread.trained
    assert trained["test_accuracy"] > 0.6, "circles, squares and stripes are easy"
    evaluated = evaluate.run(thread.experiment, thread.run_id).results
    assert evaluated["test/accuracy"] == pytest.approx(trained["test_accuracy"])
    assert evaluated["shift/dark/accuracy"] == pytest.approx(trained["shift_accuracy"]["dark"])
    logged = thread.metrics()
    assert logged["probe/linear/test_accuracy"] == pytest.approx(evaluated["probe/linear/test_accuracy"])
    recalls = [logged[f"test/class_accuracy/{label}"] for label in CLASSES]
    assert np.mean(recalls) == pytest.approx(evaluated["test/balanced_accuracy"])
    files = thread.fetched("evaluation", tmp_path)
    assert {"test/confusion.svg", "test/classes.csv"} <= {str(file.relative_to(files)) for file in files.rglob("*")}


def test_analyses_are_explained_and_logged(thread: Thread, tmp_path: Path) -> None:
    explained = evaluate.run(thread.experiment, thread.run_id, analyses=["margins", "neurons"])
    assert explained.results["analysis/margins/positive_share"] == pytest.approx(thread.trained["test_accuracy"])
    assert "fewer than 8 class-mean pairs" in explained.text, "three classes cannot be tested, and the step says so"
    silhouette = explained.results["analysis/margins/silhouette"]
    assert thread.metrics()["analysis/margins/silhouette"] == pytest.approx(silhouette)
    figures = thread.fetched("analysis", tmp_path)
    assert {"margins.svg", "margins.txt"} <= {file.name for file in figures.iterdir()}


def test_corrupted_pictures_are_encoded_again_and_a_run_is_no_better_than_itself(
    thread: Thread, tmp_path: Path
) -> None:
    asked = {"evaluation.evaluators": ["corruptions"], "evaluation.corruptions": ["blur", "contrast"]}
    damaged = evaluate.run(thread.experiment.override(asked), thread.run_id, against=[thread.run_id]).results
    assert damaged["corruption/clean_accuracy"] == pytest.approx(thread.trained["test_accuracy"])
    assert (damaged["against/difference"], damaged["against/mcnemar_p"]) == (0, 1)
    logged = thread.metrics()
    curve = [logged[f"corruption/contrast/{severity}/accuracy"] for severity in range(1, 6)]
    assert np.mean(curve) == pytest.approx(damaged["corruption/contrast/accuracy"])
    files = thread.fetched("evaluation", tmp_path)
    assert {"corruption/curve.svg", "corruption/curve.txt"} <= {
        str(file.relative_to(files)) for file in files.rglob("*")
    }


def test_the_logged_subset_draws_the_same_rows_again(thread: Thread, tmp_path: Path) -> None:
    subset = thread.fetched("subset.json", tmp_path)
    drawn = load_data(thread.experiment)
    again = load_data(thread.experiment.override({"data.subset": str(subset), "data.split_seed": 9}))
    assert again.labelled.rows.tolist() == drawn.labelled.rows.tolist()
    assert again.val.rows.tolist() == drawn.val.rows.tolist()


def write_new_pictures(directory: Path) -> Path:
    """Write a picture of every class in a folder below, and one that is none."""
    (directory / "deep").mkdir(parents=True)
    rng = np.random.default_rng(7)
    for label in CLASSES:
        draw(label, rng).save(directory / "deep" / f"{label}.png")
    (directory / "broken.jpg").write_bytes(b"no picture")
    return directory


def test_new_pictures_are_predicted_by_the_step_and_by_mlflows_own_loading(
    thread: Thread, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    new = write_new_pictures(tmp_path / "new")
    output = tmp_path / "out" / "predictions.parquet"
    uri = thread.experiment.tracking.uri
    model = f"runs:/{thread.run_id}/model"
    with monkeypatch.context() as patch:
        patch.setattr(here, "PART_ROWS", 3)
        patch.setattr(on_ray, "stream_parts", None)
        patch.setenv("RAY_ADDRESS", "")  # no cluster
        in_process = predict.run(model, str(new), str(tmp_path / "here.parquet"), uri, max_rejected=0.25).results
    monkeypatch.setattr(predict, "HERE_ROWS", 0)
    results = predict.run(model, str(new), str(output), uri, max_rejected=0.25).results
    assert (results["rows"], results["rejected_rows"]) == (3, 1)
    predictions = pq.read_table(output).to_pydict()
    assert list(predictions) == ["id", "prediction", "probability"]
    assert predictions["id"] == [f"deep/{label}.png" for label in sorted(CLASSES)]
    assert set(predictions["prediction"]) <= set(CLASSES)
    rejected = pq.read_table(output.with_name("predictions.rejected.parquet")).to_pylist()
    assert rejected == [{"id": "broken.jpg", "reason": "not a picture in a known format"}]
    assert in_process == {**results, "output": str(tmp_path / "here.parquet")}
    for ending in ("", ".rejected"):
        found, expected = tmp_path / f"here{ending}.parquet", output.with_name(f"predictions{ending}.parquet")
        assert pq.read_table(found) == pq.read_table(expected), "the same without Ray"

    # Listed in two windows, a part each, by an actor's class in this process.
    for name, value in {"PART_ROWS": 2, "WINDOW_PARTS": 1}.items():
        monkeypatch.setattr(on_ray, name, value)
    monkeypatch.setattr(workers.Workers, "from_settings", lambda *_, **__: workers.HERE)
    table, again = tmp_path / "new.csv", tmp_path / "again.parquet"
    table.write_text("\n".join(["path", *predictions["id"], "broken.jpg"]))
    line = ["--model", model, "--tracking-uri", uri, "--input", str(table), "--root", str(new), "--output", str(again)]
    assert uml(["predict", *line, "--top", "all"]) == 2
    said = capsys.readouterr().err
    assert "error: 1 of 4 unreadable inputs" in said
    assert f"(--max-rejected is 5%); mend them, or raise the limit; 3 predictions are in {again}" in said
    ranked = pq.read_table(again).to_pydict()
    assert {name: ranked[name] for name in predictions} == predictions
    assert [names[0] for names in ranked["top_predictions"]] == predictions["prediction"]
    assert [values[0] for values in ranked["top_probabilities"]] == predictions["probability"]
    assert all(set(names) == set(CLASSES) for names in ranked["top_predictions"])
    assert [sum(values) for values in ranked["top_probabilities"]] == pytest.approx([1, 1, 1])
    table.write_text("path\nbroken.jpg\n")
    with pytest.raises(InputError, match="1 of 1 unreadable inputs"):
        predict.run(model, str(table), str(again), uri, root=str(new), max_rejected=1)
    assert not ray.data.DataContext.get_current().execution_options.preserve_order, "in predict alone"

    # The same model through MLflow's own loading, as `mlflow models serve` does it: raw file bytes in.
    mlflow.set_tracking_uri(uri)
    served = mlflow.pyfunc.load_model(thread.trained["model_uri"])
    contents = [(new / row).read_bytes() for row in predictions["id"]]
    frame = served.predict(pd.DataFrame({"content": contents}))
    assert frame["prediction"].tolist() == predictions["prediction"]
    assert frame["probability"].tolist() == pytest.approx(predictions["probability"], abs=1e-4)


def test_a_sweep_of_two_seeds_is_reported_as_undecided(thread: Thread, tmp_path: Path) -> None:
    fewer = {
        "data.shots": 2,
        "tune.seeds": 2,
        **ONE_AT_A_TIME,
        "tune.mixing": ["loss_weight", "schedule"],
        "tune.loss_weights": [0.3, 1],
    }
    swept = tune.run(thread.experiment.override(fewer), "mixing_ratio").results
    assert swept["trials"] == 2 * (4 + 4)
    page = report.run(thread.experiment, tmp_path / "report").results
    assert page["verdict_kind"] == "undecided", "two seeds and no controls decide nothing"
    assert Path(page["report"]).stat().st_size > 10_000


@pytest.mark.parametrize(("shared", "kind"), [(True, "gain"), (False, "harm")])
def test_the_pipeline_finds_the_known_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write_known_answer(tmp_path / "synthetic", shared=shared)
    tracking = [f"tracking.{key}={place}" for key, place in tracking_in(tmp_path).items()]
    experiment = load_experiment(file, [*tracking, "train.max_steps=300"])  # half: enough to tell
    embed.run(experiment)
    results = tune.run(experiment.override(ONE_AT_A_TIME), "controls").results
    assert results["verdict_kind"] == kind, json.dumps(results)
    if shared:
        assert results["verdict"].startswith("Ship uml_init at 1 shot: ")
        assert "unpaired data are worth +" in results["verdict"]
    else:
        assert "Co-training: Warning, harm" in results["verdict"]
