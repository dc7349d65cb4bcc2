"""Encoders: real weights from packages, small local checkpoints in place of hub models, real damaged files."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pyarrow.fs as pafs
import pytest
import timm
import torch
from PIL import Image
from transformers import AutoTokenizer, BertConfig, BertModel, BertTokenizerFast, GPT2Config, GPT2Model

from uml_core.config import EncoderConfig
from uml_core.encoders import RowError, build_encoder, fingerprint, torch_encoder
from uml_core.encoders.image.folding import has_foldable
from uml_core.encoders.image.timm_encoder import TimmEncoder
from uml_core.encoders.kept_graphs import keep
from uml_core.encoders.openvino_engine import OpenVinoForward
from uml_core.encoders.pictures import open_picture
from uml_core.encoders.text.sentence_encoders import pool
from uml_core.encoders.torch_encoder import TorchEncoder
from uml_core.encoders.transformers_models import HubEncoder, hub_model
from uml_core.encoders.weights import fetched
from uml_core.errors import InputError
from uml_core.files.paths import remote

ROOT = Path(__file__).parents[2]
PACKAGED = EncoderConfig(source="package", name="efficientnet_lite0")


def encoded(picture: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def noise(mode: str = "RGB", size: tuple[int, int] = (50, 40)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, size=(size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "RGBA", "LA"])
def test_pictures_of_every_mode_become_rgb(mode: str) -> None:
    format = "TIFF" if mode == "CMYK" else "PNG"
    assert open_picture(encoded(noise(mode), format)).mode == "RGB"


def test_transparency_lies_on_white_and_sixteen_bit_grey_keeps_its_shades() -> None:
    assert open_picture(encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 0)))).getpixel((0, 0)) == (255, 255, 255)
    grey = Image.fromarray(np.full((4, 4), 32768, dtype=np.uint16))
    assert open_picture(encoded(grey)).getpixel((0, 0)) == (127, 127, 127)


def test_exif_rotation_is_applied() -> None:
    exif = Image.Exif()
    exif[274] = 6  # rotated by 90 degrees
    assert open_picture(encoded(noise(), "JPEG", exif=exif)).size == (40, 50)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: content[: len(content) // 2], "damaged picture"),
        (lambda content: b"plain text", "not a picture"),
        (lambda content: content[:8], "not a picture"),
    ],
)
def test_unreadable_pictures_say_why(damage: Callable[[bytes], bytes], reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        open_picture(damage(encoded(noise())))


def test_heic_is_read_with_package_pillow_heif_or_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("uml_core.encoders.pictures._reads_heif", lambda: False)
        with pytest.raises(RowError, match="as HEIC: pip install pillow-heif"):
            open_picture(b"\x00\x00\x00\x1cftypheic" + bytes(100))
    open_picture(encoded(noise()))  # which tells Pillow how
    assert open_picture(encoded(noise(), "HEIF")).size == noise().size


@pytest.mark.parametrize("width", [8_000, 30_000])
def test_a_decompression_bomb_is_refused_unread(width: int) -> None:
    small = encoded(Image.new("1", (1, 1)))
    header = small[12:16] + struct.pack(">II", width, width) + small[24:29]  # IHDR's type, size and the rest
    bomb = small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]
    with pytest.raises(RowError, match="pixels"):
        open_picture(bomb)


def test_packaged_efficientnet_is_the_packages_model() -> None:
    encoder = build_encoder(PACKAGED, "image")
    decoded = encoder.decode(encoded(noise(size=(300, 260))))
    assert isinstance(decoded, np.ndarray)
    assert decoded.shape == (224, 224, 3)
    encoder.load()
    features = encoder.encode([decoded, decoded[::-1].copy()])
    assert features.shape == (2, encoder.dim) == (2, 1280)
    # The same pixels through timm's own model by hand: (x - 127) / 128, contiguous layout.
    model = encoder._build_model(torch.float32).eval()  # type: ignore[attr-defined]
    pixels = (torch.from_numpy(decoded.copy()).permute(2, 0, 1).float() - 127) / 128
    with torch.inference_mode():
        expected = model(pixels.unsqueeze(0).contiguous())
    assert np.allclose(features[0], expected.numpy(), atol=1e-3)
    encoder.load(precision="bfloat16")
    low = encoder.encode([decoded])[0]
    cosine = (low @ features[0]) / np.linalg.norm(low) / np.linalg.norm(features[0])
    assert cosine > 0.99, "noise is the hardest picture; emoji have a median of .9992"


def test_an_encoder_built_from_anothers_settings_has_its_fingerprint() -> None:
    encoder = build_encoder(PACKAGED, "image")
    again = build_encoder(encoder.config, encoder.modality)  # as an actor builds it
    settings = {"dtype": "float32", "precision": "float32"}
    assert fingerprint(again, **settings) == fingerprint(encoder, **settings)
    assert fingerprint(encoder, dtype="float16", precision="float32") != fingerprint(encoder, **settings)
    lite = build_encoder(EncoderConfig(source="package", name="minilm_l6"), "text")
    assert fingerprint(lite, **settings) != fingerprint(encoder, **settings)


def test_the_default_encoders_know_without_torch_what_their_libraries_say() -> None:
    """Their fingerprints name the store's folders, which every step asks for."""
    said = """
import sys
from uml_core.config import EncodersConfig
from uml_core.encoders import build_encoder, fingerprint
for modality in ("image", "text"):
    encoder = build_encoder(getattr(EncodersConfig(), modality), modality)
    print(fingerprint(encoder, dtype="float16", precision="bfloat16"))
print(sorted({"torch", "timm", "transformers"} & sys.modules.keys()))
"""
    result = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.splitlines()[-1] == "[]"
    image, text = (
        build_encoder(PACKAGED, "image"),
        build_encoder(EncoderConfig(source="package", name="minilm_l6"), "text"),
    )
    assert isinstance(image, TimmEncoder)
    assert isinstance(text, HubEncoder)
    theirs = timm.data.resolve_data_config({}, model=image.skeleton)
    assert {**theirs, **{name: image.preprocessing[name] for name in ("mean", "std")}} == image.preprocessing
    assert image.dim == image.skeleton.num_features
    assert has_foldable(image.skeleton)
    assert text.dim == hub_model(text.location, "text")[1].hidden_size


def test_a_kept_graph_gives_what_torch_and_the_libraries_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced once; then nothing is traced, not even where the encoder decodes and pools without torch."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    texts = ["a cat", "naïve  café", "日本語 😀", "the quick brown fox " * 80, "[SEP] x"]
    traced, kept = (build_encoder(EncoderConfig(source="package", name="minilm_l6"), "text") for _ in range(2))
    assert isinstance(kept, HubEncoder)
    traced.load()
    monkeypatch.setattr(kept, "_build_model", pytest.fail)
    monkeypatch.setattr(torch_encoder, "one_maker", pytest.fail)  # processes compile what is kept side by side
    kept.load()
    tokenizer = AutoTokenizer.from_pretrained(kept.location)
    rows = [kept.decode(text) for text in texts]
    for text, row in zip(texts, rows, strict=True):
        assert np.array_equal(row, tokenizer(text, truncation=True, max_length=256)["input_ids"])
    assert np.array_equal(kept.encode(rows), traced.encode(rows))
    with torch.inference_mode():
        assert np.allclose(kept.encode(rows), kept.features(kept.padded(rows)), atol=1e-6)
    image = build_encoder(PACKAGED, "image")
    assert isinstance(image, TimmEncoder)
    theirs = timm.data.create_transform(**image.preprocessing, is_training=False, normalize=False).transforms[:-1]
    for size in ((30, 700), (257, 600), (256, 256), (1000, 333), (299, 301)):
        picture = noise(size=size)
        for transform in theirs:
            picture = transform(picture)
        assert np.array_equal(image.decode(encoded(noise(size=size))), picture), size


def test_a_graph_that_cannot_be_kept_leaves_nothing(tmp_path: Path) -> None:
    made, graph = tmp_path / "module.onnx", tmp_path / "graph.onnx"
    made.write_bytes(b"graph")
    graph.mkdir()  # in its way
    keep(made, graph)
    assert sorted(tmp_path.iterdir()) == [graph, made]


def test_minilm_ranks_sentences_by_meaning_whatever_their_batch() -> None:
    encoder = build_encoder(EncoderConfig(source="package", name="minilm_l6"), "text")
    encoder.load()
    sentences = [encoder.decode(text) for text in ("a small cat", "a kitten", "quarterly interest rates rose " * 10)]
    together = encoder.encode_all(sentences, batch_size=2)
    alone = np.concatenate([encoder.encode([sentence]) for sentence in sentences])
    assert together.shape == (3, encoder.dim) == (3, 384)
    assert np.allclose(together, alone, atol=1e-5)
    assert together[0] @ together[1] > together[0] @ together[2]
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("pooling", "expected"), [("cls", [[1.0], [4.0]]), ("mean", [[1.5], [5.0]]), ("last", [[2.0], [6.0]])]
)
def test_pooling_by_hand(pooling: str, expected: list[list[float]]) -> None:
    hidden = torch.tensor([[[1.0], [2.0], [99.0]], [[4.0], [5.0], [6.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert pool(hidden, mask, pooling).tolist() == expected


def write_tokenizer(directory: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog"]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    BertTokenizerFast(vocab_file=str(directory / "vocab.txt")).save_pretrained(directory)


@pytest.mark.parametrize(("family", "pooling"), [("bert", "cls"), ("gpt2", "mean")])
def test_local_transformers_checkpoints(tmp_path: Path, family: str, pooling: str) -> None:
    """The loading code of hub models, on small randomly initialised ones saved locally."""
    torch.manual_seed(0)
    if family == "bert":
        config = BertConfig(
            vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
        )
        BertModel(config).save_pretrained(tmp_path)
    else:
        GPT2Model(GPT2Config(vocab_size=8, n_embd=16, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    encoder = build_encoder(EncoderConfig(source="transformers", name="some/model", weights=str(tmp_path)), "text")
    assert encoder.dim == 16
    assert encoder.identity()["pooling"] == pooling
    encoder.load()
    cat, dogs = encoder.decode("a cat"), encoder.decode("a dog a dog")
    both, alone = encoder.encode([cat, dogs]), encoder.encode([cat])
    assert np.allclose(both[0], alone[0], atol=1e-5), "padding does not change a row"


def test_local_timm_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", pretrained=False)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    encoder = build_encoder(EncoderConfig(source="timm", name="test_resnet", weights=str(tmp_path)), "image")
    encoder.load()
    decoded = encoder.decode(encoded(noise()))
    assert encoder.encode([decoded]).shape == (1, encoder.dim)
    other = build_encoder(EncoderConfig(source="timm", name="test_resnet"), "image")
    assert other.identity()["weights"] != encoder.identity()["weights"]


def test_weights_by_a_uri_are_copied_once(s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    torch.save(timm.create_model("test_resnet", pretrained=False).state_dict(), tmp_path / "weights.pth")
    given = EncoderConfig(source="timm", name="test_resnet", weights=str(tmp_path / "weights.pth"))
    there = f"{s3_bucket}/models/resnet/weights.pth"
    filesystem, path = remote(there)
    pafs.copy_files(str(tmp_path / "weights.pth"), path, destination_filesystem=filesystem)
    for location in (there, f"{s3_bucket}/models/resnet"):
        encoder = build_encoder(given.model_copy(update={"weights": location}), "image")
        encoder.load()
        assert encoder.identity() == build_encoder(given, "image").identity()
    copies = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("weights.pth")}
    assert len(copies) == 2
    fetched.cache_clear()  # another process
    encoder.identity()
    assert {file: file.stat().st_mtime_ns for file in copies} == copies
    absent = build_encoder(given.model_copy(update={"weights": f"{s3_bucket}/models/vit"}), "image")
    with pytest.raises(InputError, match=r"encoders.image.weights is s3://uml-tests/models/vit, which does not exist"):
        absent.identity()


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "weights.pth")
    encoder = build_encoder(EncoderConfig(source="timm", name="test_vit", weights=str(tmp_path)), "image")
    with pytest.raises(InputError, match=r"lacks .* weights of timm model 'test_vit'"):
        encoder.load()
    content = (tmp_path / "weights.pth").read_bytes()
    (tmp_path / "weights.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="does not hold weights of timm model 'test_vit'") as error:
        encoder.load()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "tokens"),
    [("test_vit", 100), ("test_vit4", 100), ("test_resnet", 25), ("swin_tiny_patch4_window7_224", 49)],
)
def test_timm_patch_tokens_are_the_models_own_without_its_prefix(tmp_path: Path, name: str, tokens: int) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=0).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    config = EncoderConfig(source="timm", name=name, weights=str(tmp_path), pooling="tokens")
    encoder = build_encoder(config, "image")
    encoder.load()
    decoded = [encoder.decode(encoded(noise())), encoder.decode(encoded(noise("L", (90, 70))))]
    sequences = encoder.encode_all(decoded, batch_size=2)
    assert [sequence.shape for sequence in sequences] == [(tokens, encoder.dim)] * 2
    # timm's own way to the same features: all intermediate ones, prefix apart, as (B, D, H, W).
    pixels = encoder._pixels(decoded)  # type: ignore[attr-defined]
    with torch.inference_mode():
        expected = model.forward_intermediates(pixels, indices=1, norm="vit" in name, intermediates_only=True)[0]
        expected = model.norm(expected.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if "swin" in name else expected
    np.testing.assert_allclose(np.stack(sequences), expected.flatten(2).transpose(1, 2).numpy(), atol=1e-4)


def test_dim_and_size_are_known_without_weights() -> None:
    config = EncoderConfig(source="timm", name="vit_small_patch14_dinov2.lvd142m", image_size=224)
    encoder = build_encoder(config, "image")
    assert encoder.dim == 384
    assert encoder.identity()["preprocessing"]["mean"] == (0.485, 0.456, 0.406)
    decoded = encoder.decode(encoded(noise()))
    assert isinstance(decoded, np.ndarray)
    assert decoded.shape == (224, 224, 3)  # its pretrained config says 518


@pytest.mark.parametrize("pooling", ["auto", "tokens"])
def test_compiling_is_set_up_on_loading_and_leaves_the_fingerprint(tmp_path: Path, pooling: str) -> None:
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "weights.pth")
    settings = {"source": "timm", "name": "test_resnet", "weights": str(tmp_path), "pooling": pooling}
    plain, compiled = (
        build_encoder(EncoderConfig.model_validate({**settings, "compile": value}), "image") for value in (False, True)
    )
    for encoder in (plain, compiled):
        encoder.load()
    # Only the first batch compiles, which takes a minute: what is asked here is that it would.
    assert isinstance(compiled, TorchEncoder)
    assert compiled._model is not compiled.module, "torch.compile's form of it is called"
    assert compiled.module is not None
    assert isinstance(plain, TorchEncoder)
    assert isinstance(plain._model, OpenVinoForward)
    assert compiled.identity() == plain.identity()


def test_fingerprints_stay_what_they_were() -> None:
    """A changed fingerprint makes every user embed again: change one only where the numbers change."""
    encoders: list[tuple[str, dict[str, Any]]] = [
        ("image", {"source": "package", "name": "efficientnet_lite0"}),
        ("text", {"source": "package", "name": "minilm_l6"}),
        ("text", {"source": "package", "name": "bytes", "pooling": "tokens"}),
        ("audio", {"source": "package", "name": "logmel"}),
        ("image", {"source": "timm", "name": "test_vit", "weights": "random"}),
    ]
    prints = {
        str(settings["name"]): fingerprint(
            build_encoder(EncoderConfig(**settings), modality), dtype="float32", precision="float32"
        )
        for modality, settings in encoders
    }
    assert prints == {
        "efficientnet_lite0": "628225e3ca01",
        "minilm_l6": "0899c3871f1a",
        "bytes": "2ea1eae85a7c",
        "logmel": "49f933566899",
        "test_vit": "7be9e636de1d",
    }


@pytest.mark.parametrize(
    ("modality", "settings", "part"),
    [
        ("image", {"source": "timm", "name": "resnet5O"}, "did you mean 'resnet50'"),
        ("image", {"source": "package", "name": "efficientnet"}, "did you mean 'efficientnet_lite0'"),
        ("audio", {"source": "timm", "name": "x"}, "sources for audio are"),
        ("text", {"source": "transformers", "name": "x", "weights": "/nowhere"}, "set encoders.text.weights"),
        (
            "text",
            {"source": "package", "name": "minilm_l6", "pooling": "cls"},
            r"'minilm_l6' has auto \(mean\), mean, tokens",
        ),
        ("audio", {"source": "package", "name": "logmel", "pooling": "cls"}, "logmel has auto, tokens"),
        ("image", {"source": "timm", "name": "resnet18", "image_size": 64}, "does not take pooling=auto, image_size"),
        ("image", {"source": "timm", "name": "resnet18", "pooling": "last"}, "have auto, cls, mean and tokens"),
        ("image", {"source": "timm", "name": "resnet18", "weights": "/nowhere"}, "encoders.image.weights is /nowhere"),
    ],
)
def test_encoders_that_do_not_exist(modality: str, settings: dict[str, str], part: str) -> None:
    def use() -> None:
        encoder = build_encoder(EncoderConfig.model_validate(settings), modality)
        encoder.identity()
        encoder.load()

    with pytest.raises(InputError, match=part) as error:
        use()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("modality", "source", "name"),
    [
        ("image", "timm", "resnet18.a1_in1k"),
        ("image", "transformers", "facebook/dinov2-small"),
        ("text", "transformers", "openlm-research/open_llama_3b_v2"),
        ("audio", "transformers", "openai/whisper-tiny"),
    ],
)
def test_models_that_are_not_there_offline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, modality: str, source: str, name: str
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=f"'{name}'.* not in the local hub cache {tmp_path}.*set encoders") as error:
        build_encoder(EncoderConfig.model_validate({"source": source, "name": name}), modality).load()
    assert "\n" not in str(error.value)
    assert f"encoders.{modality}.weights=" in str(error.value)
