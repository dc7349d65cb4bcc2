"""Encoders on a GPU: trained in bfloat16, compiled, resumed, and their embeddings against the CPU's."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import finish
from tests.fine_tuning_runs import predictions_of, run_of, write_corpus
from tests.gpu.device import DEVICE, NEEDS_GPU, on_device, saved_and_loaded, share_apart, weights_of
from tests.tiny_models import save_text, save_vision
from uml_core.config import EncoderConfig
from uml_core.encoders import Encoder, build_encoder
from uml_core.errors import InputError
from uml_core.evaluation.outcome import measure_outcome
from uml_core.training.run import TrainingRun

pytestmark = NEEDS_GPU

LONGER = {"train.max_steps": 60, "train.eval_every": 20, "optim.backbone_lr": 3e-4}
ACCUMULATED = {"train.accumulate": 2, "optim.ema_decay": 0.9, "optim.layer_decay": 0.7, "optim.clip_norm": 1.0}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("pictures"))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        ACCUMULATED,
        {"model.backbone": "partial", "model.trained_blocks": 2, "mixing.schedule": "alternate"},
        {"model.backbone": "lora", "optim.lora_lr": 1e-3},
        {"train.compile": True, "model.drop_path": 0.1},
    ],
    ids=["finetune", "accumulated", "partial", "lora", "compiled"],
)
def test_an_encoder_trained_in_bfloat16_learns(corpus: Path, changes: dict[str, Any]) -> None:
    run = on_device(run_of(corpus, **LONGER, **changes))
    assert run.experiment.train.precision == "auto"
    losses = [evaluation.losses["pictures"] for evaluation in run.evaluations()]
    assert all(map(math.isfinite, losses))
    assert losses[-1] < 0.9 * losses[0]
    assert {value.dtype for value in run.model.parameters()} == {torch.float32}, "weights are kept in float32"
    assert {value.device.type for value in run.model.parameters()} == {DEVICE}
    if run.experiment.train.compile:
        assert run.model.is_compiled
    outcome = measure_outcome(run)
    predicted = predictions_of(run.objective.predictor(), [run.data.raw[row].read() for row in run.data.test.rows])
    codes = [run.data.classes.index(name) for name in predicted.classes]
    accuracy = np.mean(np.array(codes) == run.data.test.labels)
    assert accuracy == pytest.approx(outcome.test_accuracy, abs=0.1), "what is saved predicts on a CPU"


def test_in_float32_the_encoder_is_the_cpus(corpus: Path) -> None:
    """After six steps weights are apart by less than 2 % of how far they have moved, on average.

    Torch's default for convolutions, the patch embedding among them, is TF32: not to the last digit.
    """
    on_cpu = run_of(corpus, **{"train.precision": "float32"})
    start, found = weights_of(on_cpu), on_device(on_cpu)
    expected = [evaluation.losses for evaluation in on_cpu.evaluations()]
    for theirs, ours in zip(expected, found.evaluations(), strict=True):
        assert ours.losses == pytest.approx(theirs, rel=5e-3)
    assert share_apart(weights_of(found), weights_of(on_cpu), start) < 0.02


@pytest.mark.parametrize("changes", [{}, ACCUMULATED], ids=["plain", "accumulated"])
def test_a_resumed_encoder_is_the_uninterrupted_one(corpus: Path, changes: dict[str, Any]) -> None:
    """To 2 % of how far the weights move after the interruption, on average: kernels add up in no fixed order."""
    whole, first, second = (on_device(run_of(corpus, **changes)) for _ in range(3))
    finish(whole)
    next(first.evaluations())
    start = weights_of(first)
    second.load_state_dict(saved_and_loaded(first.state_dict()))
    torch.manual_seed(1234)  # what else has been drawn does not matter
    finish(second)
    assert share_apart(weights_of(second), weights_of(whole), start) < 0.02
    assert second.progress.samples == whole.progress.samples


def test_a_step_leaves_the_devices_random_state_alone(corpus: Path) -> None:
    run = on_device(run_of(corpus))
    before = torch.cuda.get_rng_state()
    finish(run)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_a_bad_row_beside_the_encoder_is_told_with_its_step(corpus: Path) -> None:
    run = run_of(corpus, **{"train.max_steps": 60})
    names = run.data.train["names"]
    bad = np.array(names.embeddings)
    bad[names.rows[4]] = np.nan
    data = replace(run.data, train={**run.data.train, "names": replace(names, embeddings=bad)})
    with pytest.raises(InputError, match=r"the loss of names is not finite at step \d+; .*rows of that batch") as found:
        finish(TrainingRun(run.experiment.override({"model.head_init": "random"}), data, device=DEVICE))
    assert str(names.rows[4]) in str(found.value)


def encoders_of(directory: Path) -> dict[str, tuple[Encoder, list[Any]]]:
    """Small encoders with random weights, and decoded rows for each."""
    save_vision(directory / "dinov2", "dinov2"), save_vision(directory / "convnext", "convnext")
    save_text(directory / "bert", "bert")
    rng = np.random.default_rng(0)
    configs = {
        "timm": EncoderConfig(source="timm", name="test_vit", image_size=32, weights="random"),
        "batch norm": EncoderConfig(source="timm", name="test_efficientnet", weights="random"),
        "dinov2": EncoderConfig(source="transformers", name="dinov2", weights=str(directory / "dinov2")),
        "convnext": EncoderConfig(source="transformers", name="convnext", weights=str(directory / "convnext")),
        "bert": EncoderConfig(source="transformers", name="bert", weights=str(directory / "bert"), pooling="mean"),
    }
    made: dict[str, tuple[Encoder, list[Any]]] = {}
    for name, config in configs.items():
        side = 160 if name == "batch norm" else 32
        pictures = list(rng.integers(0, 256, size=(10, side, side, 3), dtype=np.uint8))
        sentences = [rng.integers(2, 12, size=length, dtype=np.int32) for length in range(3, 13)]
        is_text = name == "bert"
        made[name] = build_encoder(config, "text" if is_text else "image"), sentences if is_text else pictures
    return made


@pytest.mark.parametrize(("precision", "cosine"), [("float32", 0.9999), ("bfloat16", 0.99)])
def test_embeddings_are_the_cpus(tmp_path: Path, precision: str, cosine: float) -> None:
    """Cosine of every row with the CPU's float32: .9999 in float32, .99 in bfloat16."""
    for name, (encoder, rows) in encoders_of(tmp_path).items():
        encoder.load()
        expected_ND = encoder.encode_all(rows, 4)
        encoder.load(device=DEVICE, precision=precision)
        found_ND = encoder.encode_all(rows, 4)
        lengths_N = np.linalg.norm(found_ND, axis=1) * np.linalg.norm(expected_ND, axis=1)
        assert ((found_ND * expected_ND).sum(axis=1) / lengths_N).min() > cosine, name
