"""Encoders that only encode: batch normalisation folded, run by OpenVINO on a CPU, the same features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from tests.tiny_models import save_text, save_vision
from uml_core.config import EncoderConfig
from uml_core.encoders import Encoder, build_encoder, fingerprint, openvino_engine
from uml_core.encoders.image.folding import fold_batch_norms, has_foldable
from uml_core.encoders.image.pixel_encoder import ENGINE_BATCH_SIZE
from uml_core.encoders.image.timm_encoder import TimmEncoder
from uml_core.encoders.openvino_engine import OpenVinoForward, engine_forward, runs_in
from uml_core.encoders.torch_encoder import TorchEncoder


def lively(module: nn.Module) -> nn.Module:
    """Give every batch normalisation statistics and weights of its own: fresh ones change nothing."""
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean, 0, 0.2)  # type: ignore[arg-type]
            nn.init.uniform_(part.running_var, 0.5, 2)  # type: ignore[arg-type]
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, 0, 0.2)
    return module.eval()


def encoder_of(folder: Path, name: str, **settings: Any) -> TimmEncoder:
    """A timm encoder with lively weights of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.save(lively(timm.create_model(name)).state_dict(), folder / "weights.pth")
    config = {"source": "timm", "name": name, "weights": str(folder), **settings}
    encoder = build_encoder(EncoderConfig.model_validate(config), "image")
    assert isinstance(encoder, TimmEncoder)
    return encoder


def pictures(count: int, size: int = 160) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, size=(count, size, size, 3), dtype=np.uint8))


def test_folding_by_hand() -> None:
    """BN(conv(x)) = (2 x − 1) / √(3 + 1) · 4 + 5 = 4 x + 3, with ε = 1."""
    module = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1, eps=1.0)).eval()
    for tensor, value in zip(
        (module[0].weight, module[1].running_mean, module[1].running_var, module[1].weight, module[1].bias),
        (2.0, 1.0, 3.0, 4.0, 5.0),
        strict=True,
    ):
        nn.init.constant_(tensor, value)  # type: ignore[arg-type]
    assert fold_batch_norms(module) == 1
    assert module[0].weight.item() == pytest.approx(4.0)
    assert module[0].bias.item() == pytest.approx(3.0)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_byobnet", "resnetv2_50"])
def test_folded_models_give_the_same_features(name: str) -> None:
    module = lively(timm.create_model(name, num_classes=0))
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = module(pixels)
        assert fold_batch_norms(module) > 0
        folded = module(pixels)
    torch.testing.assert_close(folded, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


class Twice(nn.Module):
    """A convolution whose output is read beside its normalisation, or that is called twice, or that decides."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.convolution, self.norm = how, nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.convolution(x)
        if self.how == "read twice":
            return y + self.norm(y)
        if self.how == "called twice":
            return self.convolution(self.norm(y))  # type: ignore[no-any-return]
        return self.norm(y) if x.sum() > 0 else y  # type: ignore[no-any-return]


@pytest.mark.parametrize("how", ["read twice", "called twice", "decides"])
def test_what_is_not_one_convolution_stays_as_it_is(how: str) -> None:
    module = lively(Twice(how))
    assert fold_batch_norms(module) == 0
    assert has_foldable(module)


def encoded(encoder: Encoder, rows: Sequence[Any]) -> np.ndarray:
    """Embeddings (N, D), or the tokens of all rows below one another."""
    return np.concatenate([np.atleast_2d(row) for row in encoder.encode(rows)])


def in_torch(encoder: Encoder, rows: Sequence[Any], **loading: str) -> np.ndarray:
    """What torch makes of rows, as on a machine without OpenVINO."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino_engine, "runs_in", lambda precision: False)
        encoder.load(**loading)
    assert isinstance(encoder, TorchEncoder)
    assert isinstance(encoder.module, nn.Module)
    assert not has_foldable(encoder.module)
    return encoded(encoder, rows)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit"])
@pytest.mark.parametrize("pooling", ["auto", "tokens"])
def test_openvino_gives_pictures_the_same_features(tmp_path: Path, name: str, pooling: str) -> None:
    encoder, rows = encoder_of(tmp_path, name, pooling=pooling), pictures(5)
    expected = in_torch(encoder, rows)
    encoder.load()
    assert isinstance(encoder._model, OpenVinoForward)
    assert encoder.cpu_batch_size == ENGINE_BATCH_SIZE
    for count in (1, 2, 5):
        first = expected[: count * len(expected) // 5]
        np.testing.assert_allclose(encoded(encoder, rows[:count]), first, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("kind", ["vit", "clip", "siglip_vision_model", "convnext", "swin"])
def test_openvino_gives_hugging_face_pictures_the_same_features(tmp_path: Path, kind: str) -> None:
    save_vision(tmp_path, kind)
    config = EncoderConfig(source="transformers", name=kind, weights=str(tmp_path))
    encoder = build_encoder(config, "image")
    rows = pictures(3, encoder.picture_size[0])  # type: ignore[attr-defined]
    expected = in_torch(encoder, rows)
    encoder.load()
    assert isinstance(encoder._model, OpenVinoForward)  # type: ignore[attr-defined]
    np.testing.assert_allclose(encoded(encoder, rows), expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("pooling", ["auto", "tokens"])
@pytest.mark.parametrize("kind", ["bert", "clip", "gpt2", "t5"])
def test_openvino_gives_sentences_the_same_features_whatever_their_lengths(
    tmp_path: Path, kind: str, pooling: str
) -> None:
    save_text(tmp_path, kind)
    settings = {"source": "transformers", "name": kind, "weights": str(tmp_path), "pooling": pooling}
    encoder = build_encoder(EncoderConfig.model_validate(settings), "text")
    batches = [[np.arange(1, length + 1) % 7 + 1 for length in lengths] for lengths in ((5,), (3, 8, 1), (2, 2))]
    expected = [in_torch(encoder, rows) for rows in batches]
    encoder.load()
    assert isinstance(encoder._model, OpenVinoForward)  # type: ignore[attr-defined]
    for rows, each in zip(batches, expected, strict=True):
        np.testing.assert_allclose(encoded(encoder, rows), each, rtol=1e-3, atol=1e-4 * np.abs(each).max())


@pytest.mark.skipif(not runs_in("bfloat16"), reason="this CPU does not compute in bfloat16")
@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit"])
def test_openvino_computes_in_bfloat16_where_the_cpu_does(tmp_path: Path, name: str) -> None:
    encoder, rows = encoder_of(tmp_path, name), pictures(5)
    exact = in_torch(encoder, rows)
    encoder.load(precision="bfloat16")
    assert isinstance(encoder._model, OpenVinoForward)
    low = encoded(encoder, rows)
    assert cosines(exact, low).min() > 0.999
    assert np.abs(exact - low).max() > 1e-4 * np.abs(exact).max(), "it did round"


def test_a_compiled_encoder_runs_in_torch(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, "test_resnet", compile=True)
    encoder.load()
    assert isinstance(encoder.module, nn.Module)


def test_a_model_that_is_too_large_to_export_runs_in_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_engine, "MAX_PARAMETERS", 1000)
    encoder = encoder_of(tmp_path, "test_vit")
    encoder.load()
    assert isinstance(encoder.module, nn.Module)


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    cosine: np.ndarray = (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    return cosine


def test_in_bfloat16_folding_comes_before_rounding(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, "test_resnet")
    rows = pictures(4)
    encoder.load()
    exact = np.asarray(encoder.encode(rows))
    encoder.load(precision="bfloat16")
    low = np.asarray(encoder.encode(rows))
    assert cosines(exact, low).min() > 0.999


def test_only_where_rounding_differs_the_fingerprint_says_folded(tmp_path: Path) -> None:
    convolutional, transformer = (encoder_of(tmp_path / name, name) for name in ("test_resnet", "test_vit"))
    assert convolutional.arithmetic("float32") == "float32"
    assert transformer.arithmetic("bfloat16") == "bfloat16"
    assert "folded" in convolutional.arithmetic("bfloat16")
    prints = {fingerprint(convolutional, dtype="float32", precision=name) for name in ("float32", "bfloat16")}
    assert len(prints) == 2


def test_what_is_trained_keeps_its_normalisation(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, "test_resnet")
    encoder.load_trainable()
    assert encoder.module.state_dict().keys() == timm.create_model("test_resnet", num_classes=0).state_dict().keys()


def test_fine_tuned_weights_are_folded_when_they_serve(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, "test_resnet")
    encoder.load_trainable()
    rows, weights = pictures(2), dict(encoder.module.state_dict())
    expected = encoder.encode(rows)
    encoder.load_weights(weights)
    assert isinstance(encoder._model, OpenVinoForward)
    np.testing.assert_allclose(encoder.encode(rows), expected, rtol=1e-3, atol=1e-4 * float(np.abs(expected).max()))


class Frozen(nn.Module):
    """A module that tracing gets wrong, or whose output is not one tensor."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.convolution = how, nn.Conv2d(3, 2, 3)

    def forward(self, x: Tensor) -> Any:
        y = self.convolution(x)
        return (y, y) if self.how == "two outputs" else y * len(x.tolist())


@pytest.mark.parametrize("how", ["two outputs", "batch frozen in"])
def test_a_graph_that_gives_other_features_is_not_used(how: str) -> None:
    traced, checked = (torch.randn(count, 3, 8, 8) for count in (2, 3))
    module = Frozen(how).eval()
    assert engine_forward(module, [traced], [checked], free=(0,), precision="float32") is None
