"""Hugging Face encoders on small random models saved locally, against direct calls of the same models."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

from tests.bad_rows import picture, picture_file, sound_file
from tests.tiny_models import save_audio, save_text, save_vision, vision_model
from uml_core.config import EncoderConfig
from uml_core.corpora.content import Raw
from uml_core.encoders import Decoded, Encoder, build_encoder
from uml_core.encoders.base import Clip
from uml_core.encoders.transformers_models import MODEL_TYPES, hub_model
from uml_core.errors import InputError

Tensor = torch.Tensor
ATOL = 1e-5

IMAGES = [picture_file(picture(mode, size)) for mode, size in (("RGB", (50, 40)), ("L", (33, 64)))]
TEXTS: list[Raw] = ["a cat sat", "the dog", "a cat sat on the mat on the mat", "the mat"]
PREFIX = {"vit": 1, "deit": 2, "dinov2": 1, "dinov2_with_registers": 4, "dinov3_vit": 3, "clip": 1}
POOLED = ("convnext", "convnextv2", "resnet", "swin")


def clip_of(seconds: float, seed: int, rate: int) -> bytes:
    samples = np.random.default_rng(seed).normal(0, 0.1, round(rate * seconds)).astype(np.float32)
    return sound_file(samples, rate=rate)


def unloaded(directory: Path, modality: str, **settings: Any) -> Encoder:
    """Build an encoder of a local model: it decodes."""
    config = EncoderConfig(source="transformers", name="some/model", weights=str(directory), **settings)
    return build_encoder(config, modality)


def encoder(directory: Path, modality: str, **settings: Any) -> Encoder:
    """Build and load an encoder of a local model."""
    built = unloaded(directory, modality, **settings)
    built.load()
    return built


def check_batches(chosen: Encoder, rows: list[Decoded], expected: list[Tensor]) -> None:
    """Assert that each row is as expected, in any batch, and as wide as config.json says."""
    for batch_size in (1, 2, 8):
        for row, other in zip(chosen.encode_all(rows, batch_size), expected, strict=True):
            assert row.dtype == np.float32
            np.testing.assert_allclose(row, other.numpy(), atol=ATOL)
            assert row.shape[-1] == chosen.dim


@pytest.mark.parametrize("kind", [*PREFIX, "siglip_vision_model", *POOLED])
def test_vision(tmp_path: Path, kind: str) -> None:
    model = save_vision(tmp_path, kind)
    with torch.inference_mode():
        processor = hf.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
        pictures = [Image.open(io.BytesIO(raw)).convert("RGB") for raw in IMAGES]
        pixels = processor(pictures, return_tensors="pt")["pixel_values"]
        output = model.vision_model(pixels) if kind == "clip" else model(pixels)
        hidden = output.last_hidden_state
        patches = hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden[:, PREFIX.get(kind, 0) :]
        if kind == "clip":
            pooled = torch.nn.functional.normalize(model.get_image_features(pixels).pooler_output, dim=-1)
        elif kind.startswith("siglip"):
            pooled = torch.nn.functional.normalize(output.pooler_output, dim=-1)
        else:
            pooled = output.pooler_output.flatten(1) if kind in POOLED else hidden[:, 0]
    for pooling, expected in (("auto", pooled), ("mean", patches.mean(1)), ("tokens", patches)):
        chosen = encoder(tmp_path, "image", pooling=pooling)
        rows = [chosen.decode(raw) for raw in IMAGES]
        assert all(isinstance(row, np.ndarray) and row.dtype == np.uint8 for row in rows)
        check_batches(chosen, rows, list(expected))


def test_the_processor_decides_size_crop_and_normalisation(tmp_path: Path) -> None:
    processor = hf.CLIPImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})
    save_vision(tmp_path, "vit", processor=processor)
    chosen = encoder(tmp_path, "image")
    decoded = chosen.decode(IMAGES[0])
    expected = hf.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")(picture(), return_tensors="pt")
    np.testing.assert_allclose(chosen._pixels([decoded]), expected["pixel_values"], atol=1e-4)  # type: ignore[attr-defined]
    assert chosen.identity()["preprocessing"]["crop_size"] == {"height": 32, "width": 32}
    save_vision(tmp_path / "other", "vit")
    assert unloaded(tmp_path / "other", "image").identity() != chosen.identity()


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "llama", "t5", "clip"])
def test_text(tmp_path: Path, kind: str) -> None:
    model = save_text(tmp_path, kind)
    tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path)
    tokens, pooled = [], []
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            tower = model.text_model if kind == "clip" else model
            hidden = tower(input_ids=ids).last_hidden_state[0]
            if kind == "clip":
                features = model.get_text_features(input_ids=ids).pooler_output[0]
                assert torch.allclose(features, model.text_projection(hidden[-1]), atol=ATOL), "its end of text"
                pooled.append(torch.nn.functional.normalize(features, dim=0))
            else:
                pooled.append(hidden[0] if kind in ("bert", "roberta") else hidden.mean(0))
        tokens.append(hidden)
    for pooling, expected in (("auto", pooled), ("last", [row[-1] for row in tokens]), ("tokens", tokens)):
        chosen = encoder(tmp_path, "text", pooling=pooling)
        check_batches(chosen, [chosen.decode(text) for text in TEXTS], expected)


def test_text_is_cut_to_the_setting_or_to_what_the_model_takes(tmp_path: Path) -> None:
    save_text(tmp_path, "clip")
    long = "cat " * 1000
    cut = [unloaded(tmp_path, "text", max_length=length) for length in (5, 256)]
    assert [each.cost(each.decode(long)) for each in cut] == [5, 12]
    whole = encoder(tmp_path, "text")
    assert whole.encode_all([whole.decode(long)], 1).shape == (1, 24)


AUDIO = {"wav2vec2": 16_000, "hubert": 16_000, "wavlm": 16_000, "whisper": 16_000, "ast": 16_000, "clap": 8_000}


def audio_output(kind: str, model: Any, clip: Clip) -> tuple[Tensor, Tensor]:
    """The frames (T, D) that hold sound, and the default pooling, by a direct call for one clip."""
    features = torch.from_numpy(clip.features)[None]
    if kind == "whisper":
        hidden = model.get_encoder()(features).last_hidden_state[0]
        frames = hidden[: -(-clip.num_samples // 320)]
        return frames, frames.mean(0)
    if kind == "ast":
        output = model(features)
        patches = output.last_hidden_state[0, 2:].unflatten(0, (2, -1)).mean(0)  # 2 patches high
        real = 1 + (1 + (clip.num_samples - 400) // 160 - 16) // 10
        return patches[:real], output.pooler_output[0]
    if kind == "clap":
        hidden = model.audio_model(features, is_longer=torch.zeros(1, 1)).last_hidden_state[0]
        frames = hidden.mean(1).T
        pooled = model.get_audio_features(features, is_longer=torch.zeros(1, 1)).pooler_output[0]
        return frames[: -(-clip.num_samples * len(frames) // 16_000)], pooled
    hidden = model(features).last_hidden_state[0]
    return hidden, hidden.mean(0)


@pytest.mark.parametrize("kind", AUDIO)
def test_audio(tmp_path: Path, kind: str) -> None:
    model = save_audio(tmp_path, kind)
    longest = {"whisper": 2, "clap": 2, "ast": 1.215}.get(kind, 0.7)
    raws = [clip_of(0.3, 0, 44_100), clip_of(0.5, 1, 16_000), clip_of(0.3, 2, AUDIO[kind]), clip_of(longest, 3, 8_000)]
    raws += [] if longest == 0.7 else [clip_of(2.5, 4, 8_000)]  # cut to what the model takes
    chosen = encoder(tmp_path, "audio")
    rows = [chosen.decode(raw) for raw in raws]
    assert all(isinstance(row, Clip) for row in rows)
    lengths = [row.num_samples / AUDIO[kind] for row in rows]  # type: ignore[union-attr]
    np.testing.assert_allclose(lengths, [0.3, 0.5, 0.3, longest, longest][: len(raws)], atol=1e-4)
    with torch.inference_mode():
        direct = [audio_output(kind, model, row) for row in rows]  # type: ignore[arg-type]
    check_batches(chosen, rows, [pooled for _, pooled in direct])
    check_batches(encoder(tmp_path, "audio", pooling="tokens"), rows, [frames for frames, _ in direct])
    check_batches(encoder(tmp_path, "audio", pooling="mean"), rows, [frames.mean(0) for frames, _ in direct])


def test_the_shortest_clip_has_a_frame(tmp_path: Path) -> None:
    for kind in AUDIO:
        save_audio(tmp_path / kind, kind)
        chosen = encoder(tmp_path / kind, "audio", pooling="tokens")
        (frames,) = chosen.encode_all([chosen.decode(clip_of(0.01, 0, AUDIO[kind]))], 1)
        assert frames.shape == (1, chosen.dim), kind


def test_half_precision_stays_close(tmp_path: Path) -> None:
    save_vision(tmp_path, "dinov2")
    chosen = encoder(tmp_path, "image")
    rows = [chosen.decode(raw) for raw in IMAGES]
    full = chosen.encode_all(rows, 2)
    for precision in ("bfloat16", "float16"):
        chosen.load(precision=precision)
        half = chosen.encode_all(rows, 2)
        assert half.dtype == np.float32
        cosine = (half * full).sum(1) / np.linalg.norm(half, axis=1) / np.linalg.norm(full, axis=1)
        assert (cosine > 0.999).all()
        assert not np.array_equal(half, full)


def test_a_type_that_is_not_supported_is_refused_with_the_list(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit_mae"}), encoding="utf-8")
    with pytest.raises(InputError, match="is of type 'vit_mae'; source transformers has, for image: clip, ") as error:
        encoder(tmp_path, "image")
    assert all(kind in str(error.value) for kind in MODEL_TYPES["image"])
    assert "\n" not in str(error.value)


def test_missing_weights_are_refused_instead_of_drawn_at_random(tmp_path: Path) -> None:
    save_vision(tmp_path, "vit")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}), encoding="utf-8")
    with pytest.raises(InputError, match="lacks 16 of the weights its config asks for") as error:
        encoder(tmp_path, "image")
    assert "\n" not in str(error.value)
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_size": 64}), encoding="utf-8")
    hub_model.cache_clear()  # as in another process
    with pytest.raises(InputError, match="weights") as error:
        encoder(tmp_path, "image")
    assert "\n" not in str(error.value)


def test_weights_that_were_cut_off_are_told(tmp_path: Path) -> None:
    save_vision(tmp_path, "vit")
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="does not hold a whole model") as error:
        encoder(tmp_path, "image")
    assert "\n" not in str(error.value)


@pytest.mark.skipif(importlib.util.find_spec("sentencepiece") is not None, reason="it is installed")
def test_a_tokenizer_that_needs_a_package_names_it(tmp_path: Path) -> None:
    hf.LlamaConfig().save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}), encoding="utf-8")
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    config = EncoderConfig(source="transformers", name="some/model", weights=str(tmp_path))
    with pytest.raises(InputError, match="pip install sentencepiece"):
        build_encoder(config, "text").decode("a cat")


def test_a_directory_without_its_preprocessor_says_what_is_missing(tmp_path: Path) -> None:
    vision_model("vit").save_pretrained(tmp_path)
    with pytest.raises(InputError, match=f"weights is {tmp_path}, which does not hold a whole model") as error:
        encoder(tmp_path, "image")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"image_size": 64}, "uses the size of the model's own image processor"),
        ({"pooling": "last"}, r"'some/model' has auto \(cls\), cls, mean, tokens"),
    ],
)
def test_settings_the_model_does_not_have(tmp_path: Path, settings: dict[str, Any], part: str) -> None:
    save_vision(tmp_path, "vit")
    with pytest.raises(InputError, match=part):
        encoder(tmp_path, "image", **settings).identity()
