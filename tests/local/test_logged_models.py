"""A logged model serves itself: its example, its own code, and the packages that its requirements name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch

from tests.conftest import vector_tree
from uml_core.config import EncoderConfig, parse_experiment
from uml_core.config.corpora import EncodersConfig
from uml_core.encoders import build_encoder
from uml_core.errors import InputError
from uml_core.serving.predictor import raw_example
from uml_core.serving.target_predictor import TargetPredictor
from uml_core.tracking.reading import download
from uml_core.tracking.sqlite_file import local_artifact
from uml_core.tracking.writing import open_experiment, start_run

ROOT = Path(__file__).parents[2]
HEAD = torch.Generator().manual_seed(0)


def predictor_of(modality: str, encoder: EncoderConfig | None, dim: int) -> TargetPredictor:
    head = torch.randn(3, dim, generator=HEAD).numpy()
    return TargetPredictor(("cat", "dog", "owl"), modality, encoder, "float32", True, head)


def test_models_answer_their_examples_where_only_their_requirements_are_installed(tmp_path: Path) -> None:
    experiment = parse_experiment(vector_tree(tmp_path))
    open_experiment(experiment.tracking, experiment.name)
    tracker = start_run(experiment, name="train", kind="uml", tags={})
    defaults = EncodersConfig()
    predictors = {
        "image": predictor_of("image", defaults.image, 1280),
        "text": predictor_of("text", defaults.text, 384),
        "vector": predictor_of("vector", None, 12),
    }
    uris = [tracker.log_predictor(each, tmp_path / name) for name, each in predictors.items()]
    tracker.register_model(uris[2], "pets", tags={}, alias="best")
    for uri in (uris[2], f"runs:/{tracker.run_id}/model", "models:/pets@best", "models:/pets/1"):
        found = local_artifact(experiment.tracking.uri, uri)
        theirs = Path(mlflow.artifacts.download_artifacts(uri, tracking_uri=experiment.tracking.uri))
        assert found is not None
        assert (found / "MLmodel").read_bytes() == (theirs / "MLmodel").read_bytes(), uri
    client = mlflow.MlflowClient(experiment.tracking.uri, experiment.tracking.uri)
    client.delete_model_version("pets", "1")
    assert local_artifact(experiment.tracking.uri, "models:/pets/1") is None, "deleted, though its folder is there"
    assert local_artifact(experiment.tracking.uri, uris[2]) is not None, "the logged model itself is not"
    requirements = mlflow.pyfunc.get_model_dependencies(uris[0])
    line = [sys.executable, "-I", str(ROOT / "tests" / "serving_process.py"), str(requirements)]
    line += [experiment.tracking.uri, *uris]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert {"ray", "psutil", "peft", "optuna", "pytest"} <= set(said["hidden"])
    assert said["loaded"] == []
    assert not Path(said["code"]).is_relative_to(ROOT), "the model brings its own code"
    for answer in said["answers"]:
        (row,) = answer
        assert row["prediction"] in ("cat", "dog", "owl")
        assert 1 / 3 <= row["probability"] <= 1
    expected = predictors["vector"].classify_ready([predictors["vector"].input_example()])
    assert said["answers"][-1] == [{"prediction": expected.classes[0], "probability": expected.probabilities[0]}]
    client.delete_logged_model(uris[2].removeprefix("models:/"))
    assert local_artifact(experiment.tracking.uri, uris[2]) is None
    with pytest.raises(InputError, match="cannot be fetched"):
        download(experiment.tracking.uri, uris[2], tmp_path / "fetched")
    with pytest.raises(InputError, match="cannot be fetched"):
        download(experiment.tracking.uri, "models:/pets/1", tmp_path / "fetched")


@pytest.mark.parametrize("modality", ["image", "audio", "text"])
def test_every_modality_has_an_example_that_its_encoder_reads(modality: str) -> None:
    encoder = build_encoder(getattr(EncodersConfig(), modality), modality)
    assert np.asarray(encoder.decode(raw_example(modality))).size
