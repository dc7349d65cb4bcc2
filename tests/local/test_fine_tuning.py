"""Training the target's encoder: it learns, resumes to the bit, and predict gives training's own logits."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.layers import DropPath
from torch import nn

from tests.conftest import finish
from tests.fine_tuning_runs import experiment_of, predictions_of, run_of, tables_of, write_corpus
from tests.tiny_models import save_vision, vision_model
from uml_core.data.training_data import build_training_data
from uml_core.encoders.image.pixel_encoder import PixelEncoder
from uml_core.errors import InputError
from uml_core.evaluation.outcome import measure_outcome
from uml_core.models.fine_tuned import block_depths, set_drop_path
from uml_core.serving.export import export_head
from uml_core.serving.target_predictor import TargetPredictor
from uml_core.training.fine_tuning import fine_tuned_space, target_encoder
from uml_core.training.optimizer import build_optimizer, set_learning_rate
from uml_core.training.run import TrainingRun
from uml_core.training.supervised import evaluate_head


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("pictures"))


def write_stripes(directory: Path, counts: dict[str, int]) -> None:
    """Write noisy stripes of any colours and phase: what tells the classes apart, no average over a picture holds."""
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        for label in ("across", "down"):
            folder = directory / "pictures" / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                wave = np.sign(np.sin(np.pi * (np.arange(32) + rng.integers(12)) / 4))
                stripes = np.broadcast_to(wave[:, None] if label == "across" else wave, (32, 32))
                pixels = 127 + 60 * stripes[..., None] * rng.uniform(-1, 1, 3) + 40 * rng.normal(size=(32, 32, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{index}.png")


def test_a_trained_encoder_beats_the_frozen_one(corpus: Path, tmp_path: Path) -> None:
    write_stripes(tmp_path, {"train": 40, "val": 30, "test": 30})
    changes = {"corpora.pictures.path": str(tmp_path / "pictures"), "pictures.min_crop": 0.8, "train.batch_size": 16}
    changes |= {"train.max_steps": 120, "train.eval_every": 20, "model.head_init": "random"}
    changes |= {"mixing.loss_weight.names": 0.0}
    tuned = finish(run_of(corpus, **changes))
    frozen = experiment_of(corpus, **changes, **{"model.backbone": "frozen"})
    head = finish(TrainingRun(frozen, build_training_data(frozen, tables_of(frozen)[0])))
    assert measure_outcome(head).test_accuracy < 0.65
    assert measure_outcome(tuned).test_accuracy > 0.8
    assert tuned.progress.samples == head.progress.samples, "the same samples of every corpus"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train.accumulate": 2, "optim.ema_decay": 0.9, "optim.layer_decay": 0.7},
        {"model.backbone": "partial", "model.trained_blocks": 2, "mixing.schedule": "alternate"},
    ],
    ids=["plain", "accumulated", "partial"],
)
def test_resuming_changes_no_bit(corpus: Path, changes: dict[str, Any]) -> None:
    whole = finish(run_of(corpus, **changes))
    first = run_of(corpus, **changes)
    next(first.evaluations())
    second = run_of(corpus, **changes)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    torch.manual_seed(1234)  # what else has been drawn does not matter
    finish(second)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    assert whole.best is not None
    assert second.best is not None
    assert (whole.best.step, whole.best.val_nll) == (second.best.step, second.best.val_nll)


def test_predict_export_and_evaluate_give_the_logits_of_trainings_evaluation(corpus: Path, tmp_path: Path) -> None:
    """Also where the store's embeddings are another arithmetic's."""
    run = finish(run_of(corpus, **{"embed.precision": "bfloat16"}))
    outcome = measure_outcome(run)
    run.objective.predictor().save(tmp_path)
    predictor = TargetPredictor.load(tmp_path)
    test = run.data.test
    raw = [run.data.raw[row].read() for row in test.rows]
    with torch.no_grad():
        run.model.eval()
        pixels = torch.from_numpy(run.objective._pictures(test.rows)).permute(0, 3, 1, 2).float()
        expected = run.model({"pictures": pixels})["pictures"]
    predicted = predictions_of(predictor, raw, batch_size=5)
    assert np.allclose(predicted.logits, expected.numpy(), atol=1e-5)
    codes = [run.data.classes.index(name) for name in predicted.classes]
    assert np.mean(np.array(codes) == test.labels) == pytest.approx(outcome.test_accuracy)
    frozen = target_encoder(run.experiment)
    frozen.load()
    assert not np.allclose(predictor.classify_decoded(frozen, [frozen.decode(row) for row in raw], batch_size=5).logits,
                           expected.numpy(), atol=1e-3)  # fmt: skip

    heads, data = fine_tuned_space(run.experiment, run.data, run.model.state_dict())
    accuracy, _ = evaluate_head(
        heads, "pictures", torch.from_numpy(data.test.gathered()), torch.from_numpy(data.test.labels)
    )
    assert accuracy == pytest.approx(outcome.test_accuracy)
    export_head(predictor, tmp_path / "out", ("safetensors",))
    assert load_file(tmp_path / "out" / "encoder.safetensors").keys() == run.model.backbone.state_dict().keys()
    assert json.loads((tmp_path / "out" / "head.json").read_text())["encoder_is_fine_tuned"]
    assert_graph_gives(predictor, raw, expected.numpy(), tmp_path / "graph")


def assert_graph_gives(predictor: TargetPredictor, raw: list[Any], logits: np.ndarray, directory: Path) -> None:
    """Assert that the exported graph gives these logits of decoded pictures, whatever their number."""
    names = [file.name for file in export_head(predictor, directory, ("onnx",))]
    assert names == ["head.json", "encoder.safetensors", "head.onnx", "model.onnx"]
    encoder = predictor.build_encoder()
    pictures = np.stack([encoder.decode(row) for row in raw])
    described = json.loads((directory / "head.json").read_text())["model.onnx"]
    assert described["input"]["shape"] == ["batch", *pictures.shape[1:]]
    session = onnxruntime.InferenceSession(str(directory / "model.onnx"), providers=["CPUExecutionProvider"])
    found, probabilities = session.run(None, {"picture": pictures})
    assert np.allclose(found, logits, atol=1e-4)
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)


def test_evaluation_is_in_eval_mode_and_restores_training(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(corpus)
    modes = []
    encode = PixelEncoder.normalised
    monkeypatch.setattr(
        PixelEncoder, "normalised", lambda self, pixels: modes.append(self.module.training) or encode(self, pixels)
    )
    next(run.evaluations())
    assert modes == [True] * 3 + [False], "three steps, and one batch of validation pictures"
    assert run.model.training
    assert run.model.backbone.training
    monkeypatch.setattr(run.objective._encoder, "features", lambda pixels: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.objective.validate()
    assert run.model.backbone.training, "also where an evaluation fails"


def test_batch_norm_learns_its_statistics_but_not_in_frozen_blocks(corpus: Path, tmp_path: Path) -> None:
    torch.save(timm.create_model("test_efficientnet").state_dict(), tmp_path / "weights.pth")
    image = {"source": "timm", "name": "test_efficientnet", "weights": str(tmp_path / "weights.pth")}
    changes = {"encoders.image": image, "train.max_steps": 1, "model.backbone": "partial", "model.trained_blocks": 1}
    run = run_of(corpus, **changes)
    before = copy.deepcopy(run.model.backbone.state_dict())
    finish(run)
    after, depths = run.model.backbone.state_dict(), run.model.depths
    last = max(depths.values())
    for name, value in before.items():
        weight = name.rsplit(".", 1)[0] + ".weight"
        assert torch.equal(value, after[name]) == (depths[weight] < last), name


def test_learning_rates_fall_towards_the_input(corpus: Path) -> None:
    run = run_of(corpus, **{"optim.layer_decay": 0.5, "optim.backbone_lr": 2e-4})
    scales = run.objective.learning_rate_scales()
    top = max(run.model.depths.values())
    assert scales["backbone.cls_token"] == pytest.approx(0.2 * 0.5**top)
    assert scales["backbone.blocks.5.mlp.fc1.weight"] == pytest.approx(0.2)
    optimizer = build_optimizer(run.model, run.experiment.optim, scales=scales)
    set_learning_rate(optimizer, 1e-3)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(run.model.heads.head.weight)] == pytest.approx(1e-3)
    assert rates[id(run.model.backbone.blocks[4].mlp.fc1.weight)] == pytest.approx(1e-4)


def test_blocks_of_models_that_do_not_say() -> None:
    module = nn.ModuleDict(
        {"stem": nn.Linear(2, 2), "layer": nn.ModuleList([nn.Linear(2, 2) for _ in range(3)]), "norm": nn.LayerNorm(2)}
    )
    expected = {"stem": 0, "layer.0": 1, "layer.1": 2, "layer.2": 3, "norm": 3}
    assert {name.rsplit(".", 1)[0]: depth for name, depth in block_depths(module).items()} == expected


@pytest.mark.parametrize("kind", ["dinov2", "clip", "resnet"])
def test_transformers_encoders_are_trained_and_saved(corpus: Path, tmp_path: Path, kind: str) -> None:
    save_vision(tmp_path / "model", kind)
    image = {"source": "transformers", "name": kind, "weights": str(tmp_path / "model")}
    run = finish(run_of(corpus, **{"encoders.image": image, "train.max_steps": 2, "train.eval_every": 1}))
    predictor = run.objective.predictor()
    rows = run.data.val.rows
    predicted = predictions_of(predictor, [run.data.raw[row].read() for row in rows])
    embedded = run.objective.embedded().val
    assert np.allclose(predicted.logits, predictor.classify(embedded.gathered()).logits, atol=1e-4)
    raw = [run.data.raw[row].read() for row in rows]
    assert_graph_gives(predictor, raw, predicted.logits, tmp_path / "graph")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.trained_blocks": 2},
            r"trained_blocks is 2 with model.backbone finetune; .* set both or neither",
        ),
        ({"model.backbone": "partial"}, r"model.trained_blocks is None with model.backbone partial"),
        ({"encoders.image.pooling": "tokens"}, r"model.backbone is finetune, which needs an encoder without pooling"),
        ({"train.gradient_cosine": True}, r"which needs train.gradient_cosine=false; or set model.backbone=frozen"),
        ({"target": "names"}, r"which needs a target of pictures or sounds, not of modality vector"),
    ],
)
def test_what_cannot_be_trained_is_refused(corpus: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        experiment_of(corpus, **changes)


def test_more_blocks_than_there_are_is_refused(corpus: Path) -> None:
    with pytest.raises(InputError, match=r"model.trained_blocks is 99, and the encoder has 6 blocks"):
        run_of(corpus, **{"model.backbone": "partial", "model.trained_blocks": 99})


def test_drop_path_rises_towards_the_last_block_and_is_off_in_evaluation(corpus: Path) -> None:
    run = run_of(corpus, **{"model.drop_path": 0.6})
    rates = [[block.drop_path1.drop_prob, block.drop_path2.drop_prob] for block in run.model.backbone.blocks]
    assert np.allclose(rates, [[0.6 * index / 5] * 2 for index in range(6)])
    assert run.model.state_dict().keys() == run_of(corpus).model.state_dict().keys()
    assert run.objective.validate() == run_of(corpus).objective.validate()
    plain = run_of(corpus, **{"train.max_steps": 1})
    dropped = run_of(corpus, **{"train.max_steps": 1, "model.drop_path": 0.6})
    assert not torch.equal(*(finish(each).model.backbone.blocks[0].mlp.fc1.weight for each in (plain, dropped)))


@pytest.mark.parametrize("kind", ["dinov2", "convnext", "swin"])
def test_drop_path_finds_the_branches_of_transformers_models(kind: str) -> None:
    module = vision_model(kind)
    set_drop_path(module, 0.5)
    rates = [part.drop_prob for part in module.modules() if isinstance(part, DropPath)]
    assert (rates[0], rates[-1]) == (0.0, 0.5)
    assert rates == sorted(rates)
    with pytest.raises(InputError, match=r"model.drop_path is 0.5, and the encoder \(ResNetModel\) names no residual"):
        set_drop_path(vision_model("resnet"), 0.5)
