"""The exported head: its files alone give the logits of `predict`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file

from pipelines.export import __main__ as export
from uml_core.config import EncoderConfig
from uml_core.errors import InputError
from uml_core.serving.export import export_head
from uml_core.serving.target_predictor import TargetPredictor

EMBEDDINGS = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)


def predictor_of(*, normalize: bool = False) -> TargetPredictor:
    head = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).numpy()
    encoder = EncoderConfig(source="package", name="efficientnet_lite0")
    return TargetPredictor(("cat", "dog", "owl"), "image", encoder, "float32", normalize, head)


def test_the_matrix_and_its_description_are_all_one_needs(tmp_path: Path) -> None:
    predictor = predictor_of()
    files = export_head(predictor, tmp_path, ("safetensors",))
    assert [file.name for file in files] == ["head.json", "head.safetensors"]
    weight = load_file(tmp_path / "head.safetensors")["head.weight"]
    assert np.allclose(EMBEDDINGS @ weight.T, predictor.classify(EMBEDDINGS).logits, atol=1e-5)
    described = json.loads((tmp_path / "head.json").read_text())
    assert described["classes"] == ["cat", "dog", "owl"]
    assert described["input"] == {"name": "embedding", "dim": 5, "dtype": "float32", "normalize": False}
    assert described["encoder"]["name"] == "efficientnet_lite0"


@pytest.mark.parametrize("normalize", [False, True])
def test_onnx_gives_the_logits_and_probabilities_of_predict(tmp_path: Path, normalize: bool) -> None:
    predictor = predictor_of(normalize=normalize)
    export_head(predictor, tmp_path, ("onnx",))
    session = onnxruntime.InferenceSession(str(tmp_path / "head.onnx"), providers=["CPUExecutionProvider"])
    rows = np.concatenate([EMBEDDINGS, np.zeros((1, 5), dtype=np.float32)])  # a zero embedding has no direction
    logits, probabilities = session.run(["logits", "probabilities"], {"embedding": rows})
    expected = predictor.classify(rows)
    assert np.allclose(logits, expected.logits, atol=1e-5)
    assert np.allclose(probabilities.max(axis=1), expected.probabilities, atol=1e-5)
    assert [predictor.classes[code] for code in logits.argmax(axis=1)] == expected.classes


def test_without_the_package_the_message_names_it_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(InputError, match=r"pip install onnx==.*or take --format safetensors"):
        export_head(predictor_of(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_line_takes_a_saved_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictor_of().save(tmp_path / "model")
    line = ["--model", str(tmp_path / "model"), "--output", str(tmp_path / "out"), "--format", "safetensors"]
    assert export.main([*line, "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"]) == 0
    results = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert results["files"] == ["head.json", "head.safetensors"]
    assert results["shape"] == [3, 5]
    (tmp_path / "file").touch()
    assert export.main([*line[:2], "--output", str(tmp_path / "file")]) == 2
    assert "which is a file; give a folder" in capsys.readouterr().err
