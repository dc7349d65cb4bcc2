"""Low-rank adapters: nothing else of an encoder is trained or saved; merged, they are the model that was measured."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from tests.conftest import CLASSES, finish, write_picture_corpora
from tests.fine_tuning_runs import data_of, experiment_of, predictions_of, run_of, run_with_text
from tests.text_models import text_model
from tests.tiny_models import save_text, save_vision
from uml_core.encoders.image.timm_encoder import TimmEncoder
from uml_core.errors import InputError
from uml_core.evaluation.outcome import measure_outcome, save_weights
from uml_core.gradients.ranks import RankContext
from uml_core.models.low_rank import _inject, add_adapters, merged_weights
from uml_core.serving.export import export_head
from uml_core.serving.target_predictor import TargetPredictor
from uml_core.training.fine_tuning import fine_tuned_space
from uml_core.training.optimizer import build_optimizer, set_learning_rate
from uml_core.training.run import TrainingRun, build_objective

LORA = {"model.backbone": "lora", "optim.lora_lr": 1e-2}
BLOCK_LAYERS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")  # of timm's ViT: width 64, MLP 192
WIDTH, MLP, DEPTH = 64, 192, 6


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of three shapes, and a tiny vision transformer with random weights."""
    directory = write_picture_corpora(tmp_path_factory.mktemp("pictures"), counts={"train": 6, "val": 4, "test": 4})
    torch.manual_seed(0)
    torch.save(timm.create_model("test_vit", img_size=32).state_dict(), directory / "weights.pth")
    return directory


def weights_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer, those that a state leaves out as well."""
    return {name: value.clone() for name, value in (*module.named_parameters(), *module.named_buffers())}


def test_adapters_start_as_the_frozen_encoder_and_are_all_that_is_trained(corpus: Path) -> None:
    run = run_of(corpus, **LORA)
    assert run.objective.validate() == run_of(corpus).objective.validate(), "B = 0"
    before = weights_of(run.model)
    adapters = {name for name in before if ".lora_" in name}
    expected = {f"backbone.blocks.{block}.{layer}" for block in range(DEPTH) for layer in BLOCK_LAYERS}
    assert {name.split(".lora_")[0] for name in adapters} == expected
    state = set(run.model.state_dict())
    assert state == {*adapters, *(name for name in before if name.startswith("heads."))}
    trained = {name for name, parameter in run.model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name in state if name != "heads.scales.names" or run.experiment.model.learnable_scale}

    after = weights_of(finish(run).model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == trained, "the encoder's own weights keep every bit"
    outcome = measure_outcome(run)
    ends = ((WIDTH, 3 * WIDTH), (WIDTH, WIDTH), (WIDTH, MLP), (MLP, WIDTH))
    in_adapters = DEPTH * sum(8 * (inputs + outputs) for inputs, outputs in ends)
    heads = run.model.heads
    in_heads = heads.head.weight.numel() + heads.projections["pictures"].weight.numel()
    assert outcome.trained_parameters == in_adapters + in_heads
    own = sum(value.numel() for value in timm.create_model("test_vit", img_size=32, num_classes=0).parameters())
    assert outcome.parameters == outcome.trained_parameters + own


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train.accumulate": 2, "optim.ema_decay": 0.9, "optim.layer_decay": 0.7},
        {"model.drop_path": 0.3, "model.lora.dropout": 0.2, "mixing.schedule": "alternate"},
    ],
    ids=["plain", "averaged", "dropped"],
)
def test_resuming_changes_no_bit(corpus: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    whole = finish(run_of(corpus, **LORA, **changes))
    first = run_of(corpus, **LORA, **changes)
    next(first.evaluations())
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = run_of(corpus, **LORA, **changes)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.manual_seed(1234)  # what else has been drawn does not matter
    finish(second)
    states = (weights_of(each.model) for each in (whole, second))
    assert all(torch.equal(*pair) for pair in zip(*(state.values() for state in states), strict=True))
    assert whole.best is not None
    assert second.best is not None
    assert (whole.best.step, whole.best.val_nll) == (second.best.step, second.best.val_nll)


def test_a_checkpoint_holds_no_copy_of_the_encoder(corpus: Path) -> None:
    sizes = {}
    for backbone in ("lora", "finetune"):
        run = run_of(corpus, **LORA, **{"optim.ema_decay": 0.9}).experiment.override({"model.backbone": backbone})
        file = io.BytesIO()
        torch.save(finish(TrainingRun(run, data_of(run))).state_dict(), file)
        sizes[backbone] = file.tell()
    assert sizes["lora"] < sizes["finetune"] / 3
    run = run_of(corpus, **LORA)
    lacking = {name: value for name, value in run.model.state_dict().items() if "blocks.3.mlp.fc1.lora_B" not in name}
    with pytest.raises(RuntimeError, match=r"Missing key.*blocks.3.mlp.fc1.lora_B"):
        run.model.load_state_dict(lacking)


def test_predict_and_export_hold_the_merged_encoder(corpus: Path, tmp_path: Path) -> None:
    run = finish(run_of(corpus, **LORA))
    outcome = measure_outcome(run)
    run.objective.predictor().save(tmp_path)
    predictor = TargetPredictor.load(tmp_path)
    test = run.data.test
    raw = [run.data.raw[row].read() for row in test.rows]
    expected = run.objective.embedded().test
    predicted = predictions_of(predictor, raw, batch_size=5)
    assert np.allclose(predicted.logits, predictor.classify(expected.gathered()).logits, atol=1e-5)
    codes = [run.data.classes.index(name) for name in predicted.classes]
    assert np.mean(np.array(codes) == test.labels) == pytest.approx(outcome.test_accuracy)

    export_head(predictor, tmp_path / "out", ("safetensors", "onnx"))
    plain = timm.create_model("test_vit", img_size=32, num_classes=0)
    plain.load_state_dict(load_file(tmp_path / "out" / "encoder.safetensors"))  # the names that timm knows
    assert not torch.equal(plain.blocks[0].attn.qkv.weight, run.model.backbone.blocks[0].attn.qkv.base_layer.weight)
    assert json.loads((tmp_path / "out" / "head.json").read_text())["encoder_is_fine_tuned"]

    logged = load_file(save_weights(run.model.state_dict(), tmp_path))  # what evaluate loads
    assert not any("base_layer" in name for name in logged)
    _, data = fine_tuned_space(run.experiment, run.data, logged)
    assert np.allclose(data.test.gathered(), expected.gathered(), atol=1e-6)


def test_rates_are_the_adapters_own_and_fall_towards_the_input(corpus: Path) -> None:
    run = run_of(corpus, **{**LORA, "optim.layer_decay": 0.5, "optim.lora_lr": 4e-3, "optim.backbone_lr": 1.0})
    optimizer = build_optimizer(run.model, run.experiment.optim, scales=run.objective.learning_rate_scales())
    set_learning_rate(optimizer, 1e-3)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    blocks = run.model.backbone.blocks
    assert rates[id(run.model.heads.head.weight)] == pytest.approx(1e-3)
    assert rates[id(blocks[5].attn.qkv.lora_A["default"].weight)] == pytest.approx(4e-3)
    assert rates[id(blocks[3].mlp.fc2.lora_B["default"].weight)] == pytest.approx(1e-3)
    assert len(rates) == sum(parameter.requires_grad for parameter in run.model.parameters())


def test_ranks_gradients_of_their_shares_add_up_to_the_joined_batchs(corpus: Path) -> None:
    """As DDP averages them; two workers of Ray Train are in tests/ray."""
    experiment = experiment_of(corpus, **LORA)
    data = data_of(experiment)
    gradients = []
    for world_size in (1, 2):
        total: dict[str, torch.Tensor] = {}
        for rank in range(world_size):
            objective = build_objective(experiment, data, RankContext(torch.device("cpu"), rank, world_size))
            objective.model.train()
            with torch.no_grad():  # B = 0 leaves A without a gradient
                for name, parameter in objective.model.named_parameters():
                    if "lora_B" in name:
                        parameter.fill_(0.01)
            batch = objective.batch(0, ["pictures", "names"])
            assert batch is not None
            sum(batch.losses(objective.model, world_size).values()).backward()  # type: ignore[union-attr]
            for name, parameter in objective.model.named_parameters():
                if parameter.grad is not None:
                    total[name] = total.get(name, 0) + parameter.grad / world_size
        gradients.append(total)
    one, two = gradients
    assert sum(".lora_A." in name for name in one) == DEPTH * len(BLOCK_LAYERS)
    for name, gradient in one.items():
        assert torch.allclose(gradient, two[name], atol=1e-5), name


def test_the_seed_decides_the_adapters_and_torchs_random_state_is_left_alone(corpus: Path) -> None:
    drawn = []
    for changes in ({}, LORA):
        torch.manual_seed(7)
        one = run_of(corpus, **changes)
        drawn.append(torch.rand(1))
    assert torch.equal(*drawn)
    again, other = run_of(corpus, **LORA), run_of(corpus, **LORA, seed=1)
    name = "backbone.blocks.0.attn.qkv.lora_A.default.weight"
    assert torch.equal(one.model.state_dict()[name], again.model.state_dict()[name])
    assert not torch.equal(one.model.state_dict()[name], other.model.state_dict()[name])


def image_of(directory: Path, name: str, **options: Any) -> dict[str, Any]:
    """Write random weights of a timm model; returns it as encoders.image."""
    torch.manual_seed(0)
    torch.save(timm.create_model(name, **options).state_dict(), directory / "other.pth")
    return {"source": "timm", "name": name, "weights": str(directory / "other.pth"), "image_size": None}


@pytest.mark.parametrize("kind", ["test_efficientnet", "test_convnext", "test_byobnet"])
def test_convolutional_encoders_have_adapters_on_pointwise_convolutions(
    corpus: Path, tmp_path: Path, kind: str
) -> None:
    changes = {"encoders.image": image_of(tmp_path, kind), "train.max_steps": 1, "train.eval_every": 1}
    run = run_of(corpus, **LORA, **changes)
    before = weights_of(run.model.backbone)
    finish(run)
    after = weights_of(run.model.backbone)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(".lora_" in name for name in moved), "running statistics stay, too"
    predictor, rows = run.objective.predictor(), run.data.val.rows
    predicted = predictions_of(predictor, [run.data.raw[row].read() for row in rows])
    embedded = run.objective.embedded().val
    assert np.allclose(predicted.logits, predictor.classify(embedded.gathered()).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "layer"),
    [
        ("dinov2", "encoder.layer.0.attention.q_proj"),
        ("clip", "vision_model.encoder.layers.1.self_attn.q_proj"),
        ("swin", "encoder.layers.0.blocks.0.attention.q_proj"),
    ],
)
def test_transformers_vision_encoders_have_adapters_in_their_blocks(
    corpus: Path, tmp_path: Path, kind: str, layer: str
) -> None:
    save_vision(tmp_path / "model", kind)
    image = {"source": "transformers", "name": kind, "weights": str(tmp_path / "model")}
    changes = {"encoders.image": image, "train.max_steps": 2, "train.eval_every": 1}
    run = finish(run_of(corpus, **LORA, **changes))
    adapted = {name.split(".lora_")[0] for name in run.model.state_dict() if ".lora_" in name}
    assert f"backbone.{layer}" in adapted
    assert not any("pooler" in name or "visual_projection" in name for name in adapted), "they are after the blocks"
    predictor, rows = run.objective.predictor(), run.data.val.rows
    predicted = predictions_of(predictor, [run.data.raw[row].read() for row in rows])
    embedded = run.objective.embedded().val
    assert np.allclose(predicted.logits, predictor.classify(embedded.gathered()).logits, atol=1e-4)


def test_layers_can_be_named_and_those_whose_weights_are_read_past_them_are_not_offered(
    corpus: Path, tmp_path: Path
) -> None:
    run = run_of(corpus, **LORA, **{"model.lora.targets": ["qkv", "blocks.5.mlp.fc2"], "model.lora.rank": 2})
    adapted = {name.split(".lora_")[0] for name in run.model.state_dict() if ".lora_" in name}
    assert adapted == {*(f"backbone.blocks.{block}.attn.qkv" for block in range(6)), "backbone.blocks.5.mlp.fc2"}
    with pytest.raises(InputError, match=r"targets names 'qvk', .*there are qkv, proj, fc1, fc2 \(did you mean 'qkv'"):
        run_of(corpus, **LORA, **{"model.lora.targets": ["qvk"]})
    # BEiT adds its bias by hand: F.linear(x, qkv.weight, ...) would never see an adapter of qkv.
    sizes = {"img_size": 32, "depth": 1, "num_heads": 2}
    image = image_of(tmp_path, "beit_base_patch16_224", **sizes) | {"image_size": 32, "depth": 1, "heads": 2}
    with pytest.raises(InputError, match=r"targets names 'qkv', .*there are proj, fc1, fc2"):
        run_of(corpus, **LORA, **{"encoders.image": image, "model.lora.targets": ["qkv"]})


class SpatialOnly(TimmEncoder):
    """An encoder of one convolution over neighbours, and what comes after it."""

    after: tuple[nn.Module, ...] = ()

    def _build_model(self, dtype: torch.dtype) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *self.after)


class WithProjection(SpatialOnly):
    """With a linear layer that is in no block."""

    after = (nn.Linear(4, 4),)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (SpatialOnly, r"\(Sequential\) has no linear .* \(its layers are Conv2d\); set model.backbone=partial"),
        (WithProjection, r"Conv2d, Linear\); outside of them are 3: name some in model.lora.targets, or set"),
    ],
)
def test_an_encoder_without_such_layers_is_refused_and_says_what_it_has(
    corpus: Path, kind: type[SpatialOnly], message: str
) -> None:
    experiment = experiment_of(corpus, **LORA)
    config = experiment.encoder_of("pictures")
    assert config is not None
    encoder = kind(config)
    encoder.load_trainable()
    with pytest.raises(InputError, match=message):
        add_adapters(experiment, {"pictures": encoder})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.lora.rank": 4}, r"model.lora is set with model.backbone finetune.*set that, or remove model.lora"),
        ({**LORA, "model.lora.rank": 0}, r"model.lora.rank is 0"),
        ({**LORA, "model.lora.ranks": 4}, r"unknown key 'model.lora.ranks' \(did you mean 'rank'\?\)"),
        ({**LORA, "model.trained_blocks": 2}, r"trained_blocks is 2 with model.backbone lora"),
        ({**LORA, "model.transfer": {"source": "minilm_l6"}}, r"needs model.backbone=finetune, not lora"),
    ],
)
def test_settings_without_a_meaning_are_refused(corpus: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        experiment_of(corpus, **changes)


def test_trained_text_encoders_have_adapters_too(corpus: Path, tmp_path: Path) -> None:
    save_text(tmp_path / "bert", "bert")
    lines = [json.dumps({"text": "a cat sat", "label": label, "id": label}) for label in CLASSES]
    (tmp_path / "names.jsonl").write_text("\n".join(lines), encoding="utf-8")
    sentences = {
        "corpora.names": {"modality": "text", "format": "table", "path": str(tmp_path / "names.jsonl")},
        "encoders.text": {"source": "transformers", "name": "bert", "weights": str(tmp_path / "bert")},
    }
    run = run_with_text(corpus, sentences, **LORA, **{"model.trained_auxiliaries": ["names"]})
    before = weights_of(run.model.text_backbones["names"])
    first = copy.deepcopy(run.model.state_dict())
    after = weights_of(finish(run).model.text_backbones["names"])
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert "encoder.layer.1.attention.self.query.lora_B.default.weight" in moved
    assert all(".lora_" in name for name in moved)
    assert "text_backbones.names.encoder.layer.0.output.dense.lora_A.default.weight" in first
    named = {**LORA, "model.trained_auxiliaries": ["names"], "model.lora.targets": ["qkv"]}
    with pytest.raises(InputError, match=r"names qkv, none of them in the encoder BertModel, which has .*query"):
        run_with_text(corpus, sentences, **named)


def test_gpt2s_transposed_layers_merge_as_well(corpus: Path) -> None:
    module = text_model("gpt2")
    plain = copy.deepcopy(module)
    _inject(experiment_of(corpus, **LORA), "names", module, [("h.0.attn.c_attn", module.h[0].attn.c_attn)])
    nn.init.normal_(module.h[0].attn.c_attn.lora_B["default"].weight)
    ids = torch.arange(6).view(1, 6)
    plain.load_state_dict(merged_weights(module))
    with torch.no_grad():
        expected, given = module(input_ids=ids).last_hidden_state, plain(input_ids=ids).last_hidden_state
    assert torch.allclose(expected, given, atol=1e-5)
