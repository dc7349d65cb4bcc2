"""Training the target's encoder under Ray: pictures streamed or kept, then predict and evaluate with its weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from safetensors.torch import load_file

from pipelines import embed, evaluate, export, predict, train
from pipelines.stored import read_training_data
from tests.conftest import picture_tree, write_picture_corpora
from tests.text_models import save_text_model
from uml_core.config import Experiment, parse_experiment
from uml_core.errors import InputError
from uml_core.results import evaluation_points
from uml_core.tracking import download, find_run, load_predictor
from uml_core.training import TrainingRun

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Pictures of shapes, their names, and a tiny vision transformer with random weights."""
    directory = write_picture_corpora(tmp_path_factory.mktemp("fine_tuning"))
    torch.manual_seed(0)
    torch.save(timm.create_model("test_vit", img_size=32).state_dict(), directory / "weights.pth")
    image = {"source": "timm", "name": "test_vit", "image_size": 32, "weights": str(directory / "weights.pth")}
    tree = {**picture_tree(directory), "encoders": {"image": image}, "model": {"backbone": "finetune"}}
    train = {"max_steps": 6, "eval_every": 3, "batch_size": 6}
    experiment = parse_experiment({**tree, "train": train, "optim": {"warmup_steps": 0, "backbone_lr": 1e-3}})
    embed.run(experiment)
    return experiment


def metrics_of_the_last_evaluation(experiment: Experiment) -> dict[str, float]:
    """Train in this process, without Ray; a batch of one rank."""
    run = TrainingRun(experiment, read_training_data(experiment).data)
    *_, last = run.evaluations()
    return {point.name: point.value for point in evaluation_points(run, last)}


def test_streamed_pictures_train_the_kept_ones_model_and_its_encoder_is_what_is_used(
    experiment: Experiment, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri = experiment.tracking.uri
    kept = train.run(experiment).results
    streamed = train.run(experiment.override({"pictures.keep": "stream"})).results
    assert "are kept in memory once decoded" in caplog.text
    assert "are decoded for every step" in caplog.text
    weights = [
        load_file(download(uri, f"runs:/{run['run_id']}/weights/model.safetensors", tmp_path / name))
        for name, run in (("kept", kept), ("streamed", streamed))
    ]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name

    evaluated = evaluate.run(experiment, kept["run_id"]).results
    assert evaluated["test/accuracy"] == pytest.approx(kept["test_accuracy"])
    assert evaluated["shift/dark/accuracy"] == pytest.approx(kept["shift_accuracy"]["dark"])

    pictures = Path(str(experiment.corpora["pictures"].path)) / "test"
    predict.run(kept["model_uri"], str(pictures), str(tmp_path / "out.parquet"), uri)
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    accuracy = np.mean([row["id"].split("/")[0] == row["prediction"] for row in rows])
    assert accuracy == pytest.approx(kept["test_accuracy"])
    predictor = load_predictor(uri, kept["model_uri"], tmp_path / "model")
    raw = [(pictures / row["id"]).read_bytes() for row in rows]
    assert np.allclose(predictor.predict(raw).probabilities, [row["probability"] for row in rows], atol=1e-5)

    exported = export.run(kept["model_uri"], str(tmp_path / "head"), uri, formats=("safetensors",)).results
    assert "encoder.safetensors" in exported["files"]


def test_two_sharded_workers_thaw_transferred_blocks_together_and_see_the_joined_batchs_losses(
    experiment: Experiment, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_text_model(tmp_path / "bert", "bert")
    transfer = {"source": str(tmp_path / "bert"), "freeze_steps": 2}
    changes = {"train.max_steps": 4, "train.eval_every": 1, "train.batch_size": 5, "model.transfer": transfer}
    settings = experiment.override(changes)
    one = metrics_of_the_last_evaluation(settings)
    results = train.run(settings.override({"train.workers": 2, "train.sharding": "full"})).results
    run_id = results["run_id"]
    two = find_run(experiment.tracking, run_id).metrics
    for name in ("train/loss/pictures", "train/loss/names", "val/nll"):  # of the fourth step: three updates made it
        assert one[name] == pytest.approx(two[name], rel=5e-3), name
    assert two["perf/workers"] == 2
    assert results["trained_parameters"] == results["parameters"], "shards are counted whole"
    predictor = load_predictor(experiment.tracking.uri, results["model_uri"], tmp_path / "model")
    assert predictor.encoder_weights.keys() == timm.create_model("test_vit", num_classes=0).state_dict().keys()
    assert "36 tensors of 3 blocks go from" in caplog.text
    table = Path(download(experiment.tracking.uri, f"runs:/{run_id}/transfer.md", tmp_path / "table")).read_text()
    assert table.count("| copied |") == 36


def test_blocks_that_do_not_fit_begin_no_run(experiment: Experiment) -> None:
    with pytest.raises(
        InputError, match=r"'minilm_l6' \(bert\) has width 384, .* and encoders.image 'test_vit' has width 64"
    ):
        train.run(experiment.override({"model.transfer": {"source": "minilm_l6"}}))


def test_two_workers_train_one_workers_adapters_and_predict_and_evaluate_use_them(
    experiment: Experiment, tmp_path: Path
) -> None:
    uri = experiment.tracking.uri
    changes = {"train.max_steps": 4, "train.eval_every": 1, "train.batch_size": 5, "optim.lora_lr": 5e-3}
    adapted = experiment.override({**changes, "model.backbone": "lora"})
    one = metrics_of_the_last_evaluation(adapted)
    two = train.run(adapted.override({"train.workers": 2})).results
    metrics = find_run(experiment.tracking, two["run_id"]).metrics
    for name in ("train/loss/pictures", "train/loss/names", "val/nll"):
        assert one[name] == pytest.approx(metrics[name], rel=5e-3), name
    assert metrics["model/trained_parameters"] < metrics["model/parameters"] / 2
    weights = load_file(download(uri, f"runs:/{two['run_id']}/weights/model.safetensors", tmp_path / "weights"))
    assert {name.partition(".")[0] for name in weights if ".lora_" not in name} == {"heads"}

    evaluated = evaluate.run(adapted, two["run_id"]).results
    assert evaluated["test/accuracy"] == pytest.approx(two["test_accuracy"])
    pictures = Path(str(experiment.corpora["pictures"].path)) / "test"
    predict.run(two["model_uri"], str(pictures), str(tmp_path / "out.parquet"), uri)
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    accuracy = np.mean([row["id"].split("/")[0] == row["prediction"] for row in rows])
    assert accuracy == pytest.approx(two["test_accuracy"])
