"""The steps as functions: experiments from files, mappings and keywords, in any directory; results with fields."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.pyfunc.scoring_server import infer_and_parse_data

from pipelines import steps
from tests.conftest import tracking_in, write_vector_corpora
from uml_core.config import Experiment, parse_experiment
from uml_core.corpora.readers import rows_of
from uml_core.errors import InputError
from uml_core.tracking.reading import find_run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's working directory, with two corpora and an empty database."""
    monkeypatch.delenv("UML_ROOT")
    monkeypatch.chdir(tmp_path)
    tracking_in(write_vector_corpora(tmp_path))
    return tmp_path


RELATIVE: dict[str, Any] = {
    "name": "vectors",
    "store": "runs/store",
    "tracking": {"uri": "sqlite:///mlflow.db", "artifacts": "artifacts"},
    "target": "target",
    "corpora": {
        name: {"modality": "vector", "format": "embeddings", "path": f"{name}.parquet"} for name in ("target", "names")
    },
    "model": {"head": "prior"},
}


def test_files_mappings_and_keywords_give_one_experiment(here: Path) -> None:
    (here / "pets.yaml").write_text(parse_experiment(RELATIVE).to_yaml(), encoding="utf-8")
    changed = steps.experiment("pets.yaml", train={"batch_size": 4}, seed=3)
    assert changed == steps.experiment(**{**RELATIVE, "seed": 3, "train": {"batch_size": 4}})
    assert changed == steps.experiment(steps.experiment(RELATIVE), seed=3, train={"batch_size": 4})
    assert (changed.seed, changed.train.batch_size, changed.model.head) == (3, 4, "prior")
    assert changed.store == str(here / "runs" / "store"), "workers have another working directory"
    with pytest.raises(InputError, match=r"unknown key 'data.shot' \(did you mean 'shots'\?\)"):
        steps.experiment("pets.yaml", data={"shot": 1})


def test_the_steps_give_typed_results(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pets: Experiment = steps.experiment(RELATIVE)
    embedded = steps.embed(RELATIVE)
    assert embedded.corpora["target"].rows == 6 * 20
    assert not embedded.corpora["target"].up_to_date
    assert steps.embed(pets).corpora["names"].up_to_date
    advice = steps.advise(pets, draws=2)
    assert advice.corpora["names"].gain.low <= advice.corpora["names"].gain.high
    began = time.time()
    trained = steps.train(pets)
    metrics = find_run(pets.tracking, trained.run_id).metrics
    assert metrics["perf/time_to_first_step_s"] < time.time() - began, "not since this process began"
    assert trained.test_accuracy > 0.5
    assert trained.model == "models:/vectors/1"
    evaluated = steps.evaluate(pets, trained.run_id, evaluators="default", against=trained.run_id)
    assert evaluated.metrics["test/accuracy"] == pytest.approx(trained.test_accuracy)
    assert evaluated.against["against/difference"] == 0
    said = evaluated.model_dump(exclude={"text"})  # as the command line, whose metrics lie side by side
    assert said == {"run_id": evaluated.run_id, **evaluated.metrics, **evaluated.against}
    assert evaluated.run_id == evaluated.runs[0].run_id == trained.run_id
    monkeypatch.setenv("UML_ROOT", str(here))
    monkeypatch.chdir(here / "runs")
    tracking_uri = "sqlite:///mlflow.db"
    predicted = steps.predict(trained.model_uri, "target.parquet", "out.parquet", tracking_uri=tracking_uri, top=2)
    assert predicted.frame()["top_predictions"].map(len).eq(2).all()
    assert predicted.frame()["prediction"].str.startswith("class-").sum() == predicted.rows == 6 * 20
    assert predicted.output == str(here / "out.parquet")
    exported = steps.export(trained.model_uri, "head", tracking_uri=pets.tracking.uri, formats="safetensors")
    assert exported.files == ("head.json", "head.safetensors")
    assert (exported.shape, exported.output) == ((6, 12), str(here / "head"))
    page = steps.report(pets)
    assert Path(page.report) == here / "runs" / "report" / "index.html"
    for result in (embedded, advice, trained, evaluated, page):
        assert repr(result) == str(result) == result.text
        assert result.text.splitlines()[0] in result._repr_html_()
    assert json.loads(trained.model_dump_json())["steps"] == 0, "what no field names is kept as well"


def test_arrays_and_frames_are_corpora(here: Path) -> None:
    rng = np.random.default_rng(0)
    means = rng.normal(size=(3, 8))
    codes = np.tile(np.arange(3), 30)
    X = means[codes] + 0.3 * rng.normal(size=(90, 8))
    split = np.repeat(["train", "test"], [30, 60])
    texts = pd.DataFrame({"embedding": list(means[codes][:, :5]), "label": [*codes[:-1].tolist(), None]})
    corpora = {
        "photos": steps.arrays(X, codes, split=split),
        "texts": texts,  # its labels are floats now, since one is missing
        "pile": steps.arrays(X[:40] + 0.1, role="unlabelled"),
    }
    given = {
        "name": "arrays",
        "target": "photos",
        "store": "store",
        "model": {"head": "prior"},
        "tracking": RELATIVE["tracking"],
    }
    pets = steps.experiment(given, corpora=corpora)
    assert Path(pets.corpora["photos"].path).parent == here / "store" / "_arrays"
    steps.embed(pets)
    again = steps.experiment(given, corpora={**corpora, "texts": texts.copy()})
    assert again == pets
    assert all(corpus.up_to_date for corpus in steps.embed(again).corpora.values())
    trained = steps.train(pets)
    assert trained.test_accuracy > 0.9
    assert trained.train_rows["texts"] == 89
    assert steps.experiment(given, corpora={**corpora, "photos": steps.arrays(X + 1, codes)}) != pets

    mlflow.set_tracking_uri(pets.tracking.uri)
    model = mlflow.pyfunc.load_model(trained.model)
    sent = ({"inputs": X.tolist()}, {"dataframe_records": [{"embedding": row} for row in X.tolist()]})
    received = [infer_and_parse_data(each, model.metadata.get_input_schema()) for each in sent]  # by a server, as JSON
    for new in (X, X.astype(np.float32), pd.DataFrame({"embedding": list(X)}), *received):
        predicted = model.predict(new)
        assert np.mean(predicted["prediction"].astype(int) == codes) > 0.9


def test_sentences_of_a_frame_are_a_corpus_of_texts(here: Path) -> None:
    frame = pd.DataFrame({"text": ["a cat", "a dog"], "label": ["cat", "dog"]})
    corpora = {"photos": steps.arrays(np.eye(2), ["cat", "dog"]), "names": frame}
    pets = steps.experiment(name="pets", store=Path("store"), target="photos", corpora=corpora)
    assert [(row.label, row.text) for row in rows_of(pets, "names")] == [("cat", "a cat"), ("dog", "a dog")]


@pytest.mark.parametrize(
    ("made", "part"),
    [
        (lambda: steps.arrays(np.zeros(3)), r"an array of shape \(3,\) and type float64 is no corpus"),
        (lambda: steps.arrays(np.zeros((3, 2)), ["a", "b"]), "3 rows and 2 labels are given; one label a row"),
        (
            lambda: steps.arrays(pd.DataFrame({"x": [1]})),
            "columns x is no corpus; it needs one named embedding or text",
        ),
        (lambda: steps.arrays(pd.DataFrame({"embedding": ["a"]})), "column embedding holds something else"),
        (lambda: steps.arrays(pd.DataFrame({"text": [1, 2]})), "column text holds something else than sentences"),
        (lambda: steps.arrays(np.eye(2), [["a", "b"], ["c"]]), r"column label holds \['a', 'b'\]; give one name a row"),
        (lambda: steps.experiment(corpora={"photos": steps.arrays(np.eye(2))}), "key 'store' is missing"),
    ],
)
def test_what_is_no_corpus_is_told_in_one_line(made: Callable[[], object], part: str) -> None:
    with pytest.raises(InputError, match=part):
        made()


@pytest.mark.parametrize(
    ("called", "part"),
    [
        (lambda: steps.predict("runs:/a/model", "new", "out.parquet", top=-1), "top is -1; give a number of classes"),
        (lambda: steps.predict("runs:/a/model", "new", "out.parquet", max_rejected=5), "is 5; give a number from 0 to"),
        (lambda: steps.export("runs:/a/model", "head", formats="onx"), "is onx; formats are safetensors, onnx"),
        (lambda: steps.evaluate(RELATIVE, classes=("a", "b")), "is for analysis decision_plane, which is not asked"),
        (lambda: steps.evaluate(RELATIVE, pairs="pairs.csv", analyses="margins"), "is for analysis neurons, which is"),
        (lambda: steps.evaluate(RELATIVE, analyses="mistake"), "names 'mistake'"),
        (lambda: steps.evaluate(RELATIVE, evaluators="defaults"), "'defaults'"),
    ],
)
def test_a_flag_that_means_nothing_is_refused(here: Path, called: Callable[[], object], part: str) -> None:
    with pytest.raises(InputError, match=part):
        called()
