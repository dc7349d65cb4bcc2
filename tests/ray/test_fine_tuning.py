"""Training the target's encoder under Ray: pictures streamed or kept, then predict and evaluate with its weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from safetensors.torch import load_file

from pipelines.embed import step as embed
from pipelines.evaluate import step as evaluate
from pipelines.export import step as export
from pipelines.predict import step as predict
from pipelines.run_data import load_data
from pipelines.train import step as train
from tests.conftest import CLASSES, picture_tree, write_embeddings, write_picture_corpora
from tests.fine_tuning_runs import predictions_of
from tests.text_models import save_text_model
from uml_core.config import Experiment, parse_experiment
from uml_core.errors import InputError
from uml_core.evaluation.outcome import evaluation_points
from uml_core.serving.target_predictor import TargetPredictor
from uml_core.tracking.reading import download, experiment_runs, find_run, load_predictor
from uml_core.training.run import TrainingRun

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Pictures of shapes with a tiny vision transformer of random weights; names of the shapes as ready embeddings."""
    directory = write_picture_corpora(tmp_path_factory.mktemp("fine_tuning"))
    names = {"label": [*CLASSES] * 3, "embedding": np.random.default_rng(1).normal(size=(9, 8))}
    write_embeddings(directory / "names.parquet", names)
    torch.manual_seed(0)
    torch.save(timm.create_model("test_vit", img_size=32).state_dict(), directory / "weights.pth")
    image = {"source": "timm", "name": "test_vit", "image_size": 32, "weights": str(directory / "weights.pth")}
    tree = {**picture_tree(directory), "encoders": {"image": image}, "model": {"backbone": "finetune"}}
    tree["corpora"]["names"] = {"modality": "vector", "format": "embeddings", "path": str(directory / "names.parquet")}
    train = {"max_steps": 6, "eval_every": 3, "batch_size": 6}
    experiment = parse_experiment({**tree, "train": train, "optim": {"warmup_steps": 0, "backbone_lr": 1e-3}})
    embed.run(experiment)
    return experiment


def trained_here(experiment: Experiment, *, threads: int) -> tuple[TrainingRun, dict[str, float]]:
    """Train in this process, without Ray; returns the run and the metrics of its last evaluation."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    run = TrainingRun(experiment, load_data(experiment))
    *_, last = run.evaluations()
    torch.set_num_threads(before)
    return run, {point.name: point.value for point in evaluation_points(run, last)}


def weights_of(experiment: Experiment, run_id: str, directory: Path) -> dict[str, torch.Tensor]:
    return load_file(download(experiment.tracking.uri, f"runs:/{run_id}/weights/model.safetensors", directory))


def evaluated_alike(experiment: Experiment, trained: dict[str, Any], directory: Path) -> TargetPredictor:
    """Check that evaluate and the logged model reach the run's accuracy; returns the model, as predict loads it."""
    uri = experiment.tracking.uri
    evaluated = evaluate.run(experiment, trained["run_id"]).results
    assert evaluated["test/accuracy"] == pytest.approx(trained["test_accuracy"])
    assert evaluated["shift/dark/accuracy"] == pytest.approx(trained["shift_accuracy"]["dark"])
    predictor = load_predictor(uri, trained["model_uri"], directory / "model")
    files = sorted(Path(str(experiment.corpora["pictures"].path)).glob("test/*/*.png"))
    predicted = predictions_of(predictor, [file.read_bytes() for file in files]).classes
    accuracy = np.mean([file.parent.name == label for file, label in zip(files, predicted, strict=True)])
    assert accuracy == pytest.approx(trained["test_accuracy"])
    assert predictor.encoder_weights.keys() == timm.create_model("test_vit", num_classes=0).state_dict().keys()
    return predictor


def test_streamed_pictures_train_the_kept_ones_model_and_its_encoder_is_what_is_used(
    experiment: Experiment, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also of transferred blocks that thaw on the way; the kept pictures train in this process, without Ray."""
    save_text_model(tmp_path / "bert", "bert")
    started = experiment.override({"model.transfer": {"source": str(tmp_path / "bert"), "freeze_steps": 2}})
    kept, _ = trained_here(started, threads=os.cpu_count() or 1)  # as the one worker: sums are of the same order
    assert kept.data.keep
    settings = started.override({"pictures.keep": "stream"})
    streamed = train.run(settings).results
    assert "are decoded for every step" in caplog.text
    weights = weights_of(experiment, streamed["run_id"], tmp_path / "weights")
    for name, value in kept.load_best().state_dict().items():
        assert torch.equal(value, weights[name]), name

    assert "36 tensors of 3 blocks go from" in caplog.text
    table = download(experiment.tracking.uri, f"runs:/{streamed['run_id']}/transfer.md", tmp_path / "table")
    assert Path(table).read_text().count("| copied |") == 36
    predictor = evaluated_alike(settings, streamed, tmp_path)
    uri, pictures = experiment.tracking.uri, Path(str(experiment.corpora["pictures"].path)) / "test"
    predict.run(streamed["model_uri"], str(pictures), str(tmp_path / "out.parquet"), uri)
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    accuracy = np.mean([row["id"].split("/")[0] == row["prediction"] for row in rows])
    assert accuracy == pytest.approx(streamed["test_accuracy"])
    raw = [(pictures / row["id"]).read_bytes() for row in rows]
    assert np.allclose(predictions_of(predictor, raw).probabilities, [row["probability"] for row in rows], atol=1e-5)
    exported = export.run(streamed["model_uri"], str(tmp_path / "head"), uri, formats=("safetensors",)).results
    assert "encoder.safetensors" in exported["files"]


def test_a_damaged_picture_that_one_of_two_workers_meets_ends_the_run_with_its_name(experiment: Experiment) -> None:
    """The other worker would wait for it half an hour, and each of three new tries as long."""
    file = Path(str(experiment.corpora["pictures"].path), "train", "stripes", "3.png")
    content = file.read_bytes()
    file.write_bytes(b"nothing")
    try:
        with pytest.raises(InputError, match=r"^picture train/stripes/3.png was embedded and can no longer be read"):
            train.run(experiment.override({"name": "damaged", "train.workers": 2}))
    finally:
        file.write_bytes(content)
    (record,) = experiment_runs(experiment.tracking.uri, "damaged")
    assert record.status == "FAILED"


def test_blocks_that_do_not_fit_begin_no_run(experiment: Experiment) -> None:
    with pytest.raises(
        InputError, match=r"'minilm_l6' \(bert\) has width 384, .* and encoders.image 'test_vit' has width 64"
    ):
        train.run(experiment.override({"model.transfer": {"source": "minilm_l6"}}))


def test_two_workers_train_one_workers_adapters_in_shards_and_evaluate_and_the_logged_model_use_them(
    experiment: Experiment, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes = {"train.max_steps": 4, "train.eval_every": 1, "train.batch_size": 5, "optim.lora_lr": 5e-3}
    adapted = experiment.override({**changes, "model.backbone": "lora"})
    _, one = trained_here(adapted, threads=1)
    settings = adapted.override({"train.workers": 2, "train.sharding": "full"})
    results = train.run(settings).results
    assert "are kept in memory once decoded" in caplog.text
    two = find_run(experiment.tracking, results["run_id"]).metrics
    for name in ("train/loss/pictures", "train/loss/names", "val/nll"):  # of the fourth step: three updates made it
        assert one[name] == pytest.approx(two[name], rel=5e-3), name
    assert two["perf/workers"] == 2
    assert two["model/trained_parameters"] < two["model/parameters"] / 2
    weights = weights_of(experiment, results["run_id"], tmp_path / "weights")
    assert {name.partition(".")[0] for name in weights if ".lora_" not in name} == {"heads"}
    evaluated_alike(settings, results, tmp_path)
