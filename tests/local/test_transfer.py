"""Weight transfer: what is copied computes what it did in the text model, and stays frozen for as long as asked."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from tests.conftest import finish, write_picture_corpora
from tests.fine_tuning_runs import data_of, experiment_of
from tests.sequence_corpora import sequence_experiment, wave_tables
from tests.text_models import DEPTH, HEADS, HIDDEN, WIDTH, save_text_model
from uml_core.config import Experiment, SequenceModelConfig, TransferConfig
from uml_core.data.sequence_data import build_sequence_data
from uml_core.errors import InputError
from uml_core.evaluation.outcome import trained_parameters
from uml_core.models.sequence.packing import pack
from uml_core.models.sequence.trunk import SharedTrunk
from uml_core.training.fine_tuning import target_encoder
from uml_core.training.run import TrainingRun
from uml_core.transfer.__main__ import main
from uml_core.transfer.plan import COPIED, NONE, own_trunk, plan_transfer, vit_trunk
from uml_core.transfer.sources import load_source
from uml_core.transfer.start import transfer_plan

POST_LN = ("bert", "roberta", "distilbert")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of three shapes."""
    return write_picture_corpora(tmp_path_factory.mktemp("pictures"), counts={"train": 4, "val": 2, "test": 2})


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of test_vit's shape."""
    directory = tmp_path_factory.mktemp("bert")
    save_text_model(directory, "bert")
    return directory


def vit(**changes: Any) -> Any:
    torch.manual_seed(1)
    return timm.create_model("test_vit", img_size=32, num_classes=0, **changes).eval()


def transferred(source: Path, module: Any, config: TransferConfig | None = None) -> Any:
    """Copy a source into a ViT."""
    settings = config or TransferConfig(source=str(source))
    plan_transfer(load_source(str(source)), vit_trunk("test_vit", module), settings).apply(module, settings, seed=0)
    return module


def transfer_experiment(corpus: Path, source: Path, **changes: Any) -> Experiment:
    image = {"source": "timm", "name": "test_vit", "image_size": 32, "weights": "random"}
    transfer = {"model.transfer": {"source": str(source)}, "encoders.image": image}
    return experiment_of(corpus, **transfer, **changes)


def run_of(experiment: Experiment) -> TrainingRun:
    return TrainingRun(experiment, data_of(experiment))


def bert_parts(model: Any, kind: str, index: int) -> tuple[Any, Any, Any, Any]:
    """The norm that a block reads, its attention, the norm between, and its MLP: functions of (B, T, H)."""
    if kind == "distilbert":
        layers = model.transformer.layer
        before = layers[index - 1].output_layer_norm if index else model.embeddings.LayerNorm
        layer = layers[index]
        return before, lambda x: layer.attention(x)[0], layer.sa_layer_norm, layer.ffn
    layers = model.encoder.layer
    before = layers[index - 1].output.LayerNorm if index else model.embeddings.LayerNorm
    layer = layers[index]
    attention = layer.attention
    return (
        before,
        lambda x: attention.output.dense(attention.self(x)[0]),
        attention.output.LayerNorm,
        lambda x: layer.output.dense(layer.intermediate(x)),
    )


@pytest.mark.parametrize("kind", POST_LN)
def test_a_sub_layer_computes_what_it_computed_in_the_text_model(tmp_path: Path, kind: str) -> None:
    source = save_text_model(tmp_path, kind)
    module = transferred(tmp_path, vit())
    values_BTH = torch.randn(2, 7, WIDTH)
    for index in range(DEPTH):
        before, attention, between, mlp = bert_parts(source, kind, index)
        block = module.blocks[index]
        with torch.no_grad():
            assert torch.allclose(block.attn(block.norm1(values_BTH)), attention(before(values_BTH)), atol=1e-5)
            assert torch.allclose(block.mlp(block.norm2(values_BTH)), mlp(between(values_BTH)), atol=1e-5)


@pytest.mark.parametrize(("activation", "tolerance"), [("gelu", 2e-5), ("gelu_new", 5e-3)])
def test_gpt2s_blocks_are_a_vits_under_a_causal_mask(tmp_path: Path, activation: str, tolerance: float) -> None:
    source = save_text_model(tmp_path, "gpt2", activation=activation)
    module = transferred(tmp_path, vit())
    values_BTH = torch.randn(2, 7, WIDTH)
    theirs, ours = values_BTH, values_BTH
    causal = torch.full((7, 7), float("-inf")).triu(1)[None, None]
    with torch.no_grad():
        for index in range(DEPTH):
            theirs = source.h[index](theirs, attention_mask=causal)
            theirs = theirs[0] if isinstance(theirs, tuple) else theirs
            ours = module.blocks[index](ours, is_causal=True)
            assert torch.allclose(ours, theirs, atol=tolerance), index
        unmasked = module.blocks[0](values_BTH)
    assert not torch.allclose(unmasked, module.blocks[0](values_BTH, is_causal=True), atol=1e-2), "the mask matters"


def test_a_bert_with_relu_is_our_own_trunk(tmp_path: Path) -> None:
    source = save_text_model(tmp_path, "bert", activation="relu")
    config = SequenceModelConfig(
        width=WIDTH, heads=HEADS, layers=DEPTH, feedforward=HIDDEN, positions="none", task="masked_token"
    )
    trunk = SharedTrunk(config).eval()
    transfer = TransferConfig(source=str(tmp_path))
    plan = plan_transfer(load_source(str(tmp_path)), own_trunk(config), transfer)
    assert set(plan.values) == {name for name, _ in trunk.named_parameters()}
    plan.apply(trunk, transfer, seed=0)
    values_BTH = torch.randn(2, 7, WIDTH)
    packing = pack(np.array([7, 7]), causal=False)
    with torch.no_grad():
        theirs = values_BTH
        for layer in source.encoder.layer:
            theirs = layer(theirs)
            theirs = theirs[0] if isinstance(theirs, tuple) else theirs
        ours = trunk(values_BTH.reshape(14, WIDTH), packing, torch.Generator())
    assert torch.allclose(ours.view(2, 7, WIDTH), theirs, atol=1e-4)


def test_an_mlp_of_another_activation_is_left_out(bert: Path) -> None:
    config = SequenceModelConfig(width=WIDTH, heads=HEADS, layers=2, feedforward=32)
    plan = plan_transfer(load_source(str(bert)), own_trunk(config), TransferConfig(source=str(bert)))
    assert set(plan.values) == {
        f"layers.{index}.{part}.{kind}"
        for index in range(2)
        for part in ("attention_in", "attention_out", "attention_norm", "feed_forward_norm")
        for kind in ("weight", "bias")
    }
    outcomes = {line.target: line.outcome for line in plan.lines}
    assert "trained with gelu, ours has relu" in outcomes["layers.1.feed_forward.expand.weight"]


@pytest.mark.parametrize("kind", [*POST_LN, "gpt2"])
@pytest.mark.parametrize("depth", [2, 6])
def test_the_table_accounts_for_every_tensor_once(tmp_path: Path, kind: str, depth: int) -> None:
    source, module = save_text_model(tmp_path, kind), vit(depth=depth)
    found = load_source(str(tmp_path))
    plan = plan_transfer(found, vit_trunk("test_vit", module), TransferConfig(source=str(tmp_path)))
    ours = Counter(line.target for line in plan.lines if line.target != NONE)
    assert ours == Counter(name for name, _ in module.named_parameters())
    copied = {line.target for line in plan.lines if line.outcome == COPIED}
    assert copied == set(plan.values)
    blocks = min(depth, DEPTH)
    assert copied == {name for name in ours if name.startswith(tuple(f"blocks.{index}." for index in range(blocks)))}
    listed = {name for pieces in found.blocks for piece in pieces.values() for name in piece.names}
    skipped = [line.source for line in plan.lines if line.target == NONE]
    assert listed | set(skipped) == set(source.state_dict())
    assert len(skipped) == len(set(skipped))
    assert plan.table().count("| copied |") == len(copied)


def test_what_is_not_the_same_is_said(tmp_path: Path, bert: Path) -> None:
    save_text_model(tmp_path, "gpt2", activation="gelu_new")
    settings = TransferConfig(source=str(tmp_path))
    notes = "\n".join(plan_transfer(load_source(str(tmp_path)), vit_trunk("test_vit", vit()), settings).notes)
    assert "a token sees only tokens before it, in ours all tokens" in notes
    assert "MLP has gelu_new, ours gelu: close, not equal" in notes
    assert "normalises" not in notes
    post = "\n".join(plan_transfer(load_source(str(bert)), vit_trunk("test_vit", vit()), settings).notes)
    assert "normalises after each sub-layer, ours before it" in post
    assert "a token sees" not in post


def test_controls_keep_the_values_without_their_order_or_keep_nothing(bert: Path) -> None:
    before = {name: value.clone() for name, value in vit().named_parameters()}
    whole = dict(transferred(bert, vit()).named_parameters())
    shuffled = dict(transferred(bert, vit(), TransferConfig(source=str(bert), control="shuffled")).named_parameters())
    scratch = dict(transferred(bert, vit(), TransferConfig(source=str(bert), control="scratch")).named_parameters())
    name = "blocks.1.attn.qkv.weight"
    assert not torch.equal(whole[name], shuffled[name])
    assert torch.equal(whole[name].flatten().sort().values, shuffled[name].flatten().sort().values)
    assert all(torch.equal(scratch[name], value) for name, value in before.items())
    assert torch.equal(whole["blocks.4.attn.qkv.weight"], before["blocks.4.attn.qkv.weight"]), "the source has 3 blocks"


def weights(run: TrainingRun, part: str) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in run.model.backbone.named_parameters() if part in name}


def test_frozen_blocks_are_trained_from_the_step_on_that_was_asked(corpus: Path, bert: Path) -> None:
    changes = {"model.transfer.freeze_steps": 3, "train.max_steps": 6, "train.eval_every": 3}
    run = run_of(transfer_experiment(corpus, bert, **changes))
    copied, fresh, patches = (weights(run, part) for part in ("blocks.1.", "blocks.5.", "patch_embed"))
    evaluations = run.evaluations()
    next(evaluations)
    assert all(torch.equal(value, weights(run, "blocks.1.")[name]) for name, value in copied.items())
    for moved in (fresh, patches):
        assert not any(torch.equal(value, run.model.backbone.get_parameter(name)) for name, value in moved.items())
    next(evaluations)
    assert not any(torch.equal(value, weights(run, "blocks.1.")[name]) for name, value in copied.items())
    assert all(parameter.requires_grad for parameter in run.model.backbone.parameters())


def test_resuming_before_the_blocks_thaw_changes_no_bit(corpus: Path, bert: Path) -> None:
    changes = {"model.transfer.freeze_steps": 4, "train.max_steps": 6, "train.eval_every": 3, "optim.ema_decay": 0.9}
    experiment = transfer_experiment(corpus, bert, **changes)
    whole, first, second = finish(run_of(experiment)), run_of(experiment), run_of(experiment)
    next(first.evaluations())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    finish(second)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


def test_blocks_frozen_to_the_end_are_never_trained(corpus: Path, bert: Path) -> None:
    changes = {"train.max_steps": 3, "train.eval_every": 3}
    frozen = run_of(transfer_experiment(corpus, bert, **changes, **{"model.transfer.freeze_steps": "all"}))
    free = run_of(transfer_experiment(corpus, bert, **changes))
    copied = weights(frozen, "blocks.1.")
    per_block = 12 * WIDTH + 4 * WIDTH**2 + 2 * WIDTH * HIDDEN + HIDDEN - 3 * WIDTH  # norms 4, biases 3 + 1 + 1 widths
    assert trained_parameters(free) - trained_parameters(frozen) == DEPTH * per_block
    finish(frozen)
    assert all(torch.equal(value, weights(frozen, "blocks.1.")[name]) for name, value in copied.items())


def test_random_weights_are_drawn_by_the_seed_and_the_stores_are_always_the_same(corpus: Path, bert: Path) -> None:
    experiment = transfer_experiment(corpus, bert)
    plain = experiment.override({"model.transfer": None})
    name = "blocks.5.mlp.fc1.weight"
    drawn = [run_of(plain.override({"seed": seed})).model.backbone.get_parameter(name) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    same = run_of(experiment).model.backbone
    assert torch.equal(same.get_parameter(name), drawn[0]), "what is not copied starts as it does from scratch"
    stored = [target_encoder(each) for each in (experiment, experiment.override({"seed": 5}))]
    for encoder in stored:
        encoder.load_trainable()
    assert torch.equal(stored[0].module.get_parameter(name), stored[1].module.get_parameter(name))
    assert stored[0].identity()["weights"] == "random"


def test_the_self_supervised_trunk_is_started_and_frozen(tmp_path: Path) -> None:
    save_text_model(tmp_path, "bert", activation="relu", width=8)
    sizes = {"width": 8, "heads": HEADS, "layers": 4, "feedforward": HIDDEN}
    changes = {**{f"sequence_model.{key}": value for key, value in sizes.items()}, "train.max_steps": 4}
    transfer = {"source": str(tmp_path), "freeze_steps": 2}
    experiment = sequence_experiment(**changes, **{"model.transfer": transfer, "train.eval_every": 2})
    run = TrainingRun(experiment, build_sequence_data(experiment, wave_tables()))
    start = copy.deepcopy(run.model.trunk.state_dict())
    assert torch.equal(start["layers.2.attention_norm.weight"], load_norm(tmp_path))
    evaluations = run.evaluations()
    next(evaluations)
    middle = copy.deepcopy(run.model.trunk.state_dict())
    assert torch.equal(start["layers.2.attention_in.weight"], middle["layers.2.attention_in.weight"])
    assert not torch.equal(start["layers.3.attention_in.weight"], middle["layers.3.attention_in.weight"])
    next(evaluations)
    assert not torch.equal(middle["layers.2.attention_in.weight"], run.model.trunk.layers[2].attention_in.weight)


def load_norm(directory: Path) -> Tensor:
    return load_source(str(directory)).blocks[2]["mlp_reads.weight"].value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoders.image.heads": 4}, r"has width 64, 2 heads, MLP 192, and encoders.image 'test_vit' has width 64, 4"),
        ({"encoders.image.name": "vit_tiny_patch16_224"}, r"has width 192, 3 heads, MLP 768; all three must be equal"),
        ({"model.transfer.blocks": 4}, r"blocks is 4; '.*' has 3 blocks and .* 6: give at most 3"),
        ({"model.transfer.source": "no/such-model"}, r"source 'no/such-model' is not in the local hub cache"),
        ({"model.transfer.source": "./nothing"}, r"^model.transfer.source is ./nothing, which is no directory"),
        ({"encoders.image.name": "test_resnet"}, r"needs a plain ViT of timm.*'test_resnet' is none"),
        ({"encoders.image.name": "test_vit3"}, r"needs a plain ViT of timm"),
        ({"encoders.image.heads": 7}, r"does not take pooling=auto, image_size=32, num_heads=7: .*divisible"),
        ({"encoders.image.source": "transformers"}, r"weights=random is set on source transformers; it belongs to"),
        ({"model.backbone": "frozen"}, r"needs model.backbone=finetune, not frozen; or remove it"),
        ({"model.transfer.layers": 2}, r"unknown key 'model.transfer.layers'.*source, blocks, freeze_steps, control"),
        ({"model.transfer.freeze_steps": -1}, r"model.transfer.freeze_steps is -1"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(
    corpus: Path, bert: Path, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    if not changes.get("encoders.image.name", "").startswith("test_vit"):
        changes = {**changes, "encoders.image.image_size": None} if "encoders.image.name" in changes else changes
    with pytest.raises(InputError, match=message) as error:
        transfer_plan(transfer_experiment(corpus, bert, **changes))
    assert "\n" not in str(error.value)


def test_types_without_a_layout_and_broken_folders_are_refused(tmp_path: Path) -> None:
    save_text_model(tmp_path / "llama", "llama")
    with pytest.raises(InputError, match=r"of type 'llama'; blocks can come from bert, camembert, distilbert, gpt2"):
        load_source(str(tmp_path / "llama"))
    save_text_model(tmp_path / "bert", "bert")
    (tmp_path / "bert" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"which does not hold a whole model"):
        load_source(str(tmp_path / "bert"))


def test_the_packaged_text_model_is_a_source() -> None:
    source = load_source("minilm_l6")
    assert str(source.shape) == "width 384, 12 heads, MLP 1536"
    assert len(source.blocks) == 6


def test_the_command_line_prints_the_table(corpus: Path, bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = corpus / "experiment.yaml"
    experiment = transfer_experiment(corpus, bert)
    file.write_text(experiment.to_yaml())
    assert main([str(file)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"36 tensors of 3 blocks go from {bert} (bert) to encoders.image 'test_vit'.")
    row = "| encoder.layer.1.attention.self.query+key+value.weight | blocks.1.attn.qkv.weight | 192 × 64 | copied |"
    assert row in printed
    assert main([str(file), "model.transfer=null"]) == 2
    assert "no model.transfer" in capsys.readouterr().err
