"""What an earlier version wrote (commit 4cf9077, `tests/earlier`) is still read: stores, a checkpoint, a model."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from pipelines.ray_train.checkpoints import load_state
from pipelines.run_data import load_data
from pipelines.stores import corpus_fingerprint
from tests.conftest import picture_tree, vector_tree
from uml_core.config import Experiment, parse_experiment
from uml_core.training.run import TrainingRun

EARLIER = Path(__file__).parents[1] / "earlier"
# When the files of ready embeddings were written, in ns since 1970: their times stand for their content.
WRITTEN_NS = {"target": 1_796_021_149_301_310_934, "names": 1_796_021_149_307_156_163}


@pytest.fixture
def vectors(tmp_path: Path) -> Experiment:
    shutil.copytree(EARLIER / "vectors", tmp_path, dirs_exist_ok=True)
    for corpus, written_ns in WRITTEN_NS.items():
        os.utime(tmp_path / f"{corpus}.parquet", ns=(written_ns, written_ns))
    return parse_experiment(vector_tree(tmp_path))


def test_a_checkpoint_goes_on_to_the_weights_its_run_ended_with(vectors: Experiment) -> None:
    run = TrainingRun(vectors, load_data(vectors), device="cpu")
    run.load_state_dict(load_state(EARLIER / "vectors" / "checkpoint"))
    assert [evaluation.step for evaluation in run.evaluations()] == [40]
    weights = run.model.state_dict()
    for name, expected in load_file(EARLIER / "vectors" / "final.safetensors").items():
        torch.testing.assert_close(weights[name], expected, rtol=0, atol=1e-6)


def test_a_store_of_pictures_and_sentences_is_found_and_trains_the_same_model(tmp_path: Path) -> None:
    shutil.copytree(EARLIER / "pictures", tmp_path, dirs_exist_ok=True)
    experiment = parse_experiment(picture_tree(tmp_path))
    folders = {path.parent.name: path.name for path in (tmp_path / "store").glob("*/*")}
    assert {corpus: corpus_fingerprint(experiment, corpus) for corpus in folders} == folders
    run = TrainingRun(experiment, load_data(experiment), device="cpu")
    for _ in run.evaluations():
        pass
    assert run.best is not None
    assert run.best.step == json.loads((tmp_path / "results.json").read_text())["best_step"]


def test_a_logged_model_loads_beside_the_present_code_and_answers_the_same() -> None:
    model = mlflow.pyfunc.load_model(str(EARLIER / "pictures" / "model"))
    content = (EARLIER / "pictures" / "circle.png").read_bytes()
    answer = model.predict(pd.DataFrame({"content": [content]}))
    assert list(answer["prediction"]) == ["circle"]
    assert answer["probability"][0] == pytest.approx(0.99546, abs=1e-3)
