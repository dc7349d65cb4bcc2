"""An image encoder's own classifier as a bridge: its rows lie where embeddings do, under the names of its classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pipelines import bridge
from tests.conftest import vector_tree
from uml_core.config import CorpusConfig, EncoderConfig, parse_experiment
from uml_core.corpora.ready.adopt import stream_ready
from uml_core.encoders import build_encoder
from uml_core.encoders.image.classifier_rows import classifier_rows
from uml_core.encoders.image.timm_encoder import PackagedEfficientNet
from uml_core.errors import InputError

PACKAGED = EncoderConfig(source="package", name="efficientnet_lite0")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "experiment.yaml"
    path.write_text(parse_experiment(vector_tree(tmp_path)).to_yaml(), encoding="utf-8")
    return path


def test_the_packaged_classifier_is_a_corpus_of_named_rows(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UML_ROOT", str(tmp_path))
    assert bridge.main([str(file), "--output", "new"]) == 0
    output = tmp_path / "new" / "classifier.parquet"
    labels = pq.read_table(output)["label"].to_pylist()
    texts = [json.loads(line) for line in (tmp_path / "new" / "names.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [text["label"] for text in texts] == labels
    assert texts[0]["text"] == "tench, Tinca tinca"
    assert len(labels) == len(set(labels)) == 998, "both cranes are left out"
    assert (labels[0], labels[-1]) == ("tench", "toilet tissue")
    corpus = CorpusConfig(modality="vector", format="embeddings", path=str(output), role="bridge")
    (chunk,) = stream_ready("imagenet", corpus)
    encoder = build_encoder(PACKAGED, "image")
    assert isinstance(encoder, PackagedEfficientNet)
    model: Any = encoder.trained_model(with_classifier=True).eval()
    picture = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        embedding = model.forward_head(model.forward_features(picture), pre_logits=True)[0].numpy()
        logits = (model(picture)[0] - model.get_classifier().bias).numpy()
    ours = dict(zip(labels, chunk.embeddings @ embedding, strict=True))
    assert ours["tench"] == pytest.approx(float(logits[0]), abs=1e-3)
    assert ours["toilet tissue"] == pytest.approx(float(logits[-1]), abs=1e-3)


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ({"name": "vit_tiny_patch16_224", "weights": "random"}, "weights is random, and such a model has learned no"),
        ({"name": "vit_tiny_patch16_224", "pooling": "mean"}, "of source timm or package, of pooling auto"),
    ],
)
def test_an_encoder_without_a_classifier_is_refused(config: dict[str, Any], part: str) -> None:
    encoder = build_encoder(EncoderConfig(source="timm", **config), "image")
    with pytest.raises(InputError, match=part):
        classifier_rows(encoder)


def test_a_model_of_other_classes_is_refused(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    name = "vit_small_patch14_dinov2"  # without a classifier
    options = {"img_size": 28, "depth": 1}
    model = timm.create_model(name, pretrained=False, **options)
    save_file(model.state_dict(), str(tmp_path / "weights.safetensors"))
    config = EncoderConfig(
        source="timm", name=name, weights=str(tmp_path / "weights.safetensors"), image_size=28, depth=1
    )
    with pytest.raises(InputError, match="which has no linear classifier of its 384 numbers"):
        classifier_rows(build_encoder(config, "image"))
    assert np.isfinite(build_encoder(config, "image").dim)
