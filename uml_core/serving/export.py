"""The trained target path as files that need none of this code: one matrix, its classes, and ONNX graphs of them.

In: a `TargetPredictor`, whose path from embedding to logits is one matrix. Out, in a folder:

    head.safetensors   head.weight (C, D) float32, and of a solved head (model.head) head.bias (C,)
    encoder.safetensors   of a fine-tuned run, with either format: the weights of its encoder
    head.json          the classes in the order of the rows, whether embeddings are normalised first, the encoder
    head.onnx          input embedding (B, D) float32; outputs logits (B, C) and probabilities (B, C)
    model.onnx         of a fine-tuned run on pictures: encoder and head as one graph, run once against torch;
                       input picture (B, H, W, 3) uint8, resized and cropped; outputs as of head.onnx

    from safetensors.numpy import load_file
    logits = embedding @ load_file("head.safetensors")["head.weight"].T

Shape legend: B batch, H height, W width, D embedding width, C classes.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file as save_head
from safetensors.torch import save_file
from torch import Tensor, nn

from uml_core.encoders import build_encoder
from uml_core.encoders.image.pixel_encoder import PixelEncoder
from uml_core.encoders.openvino_engine import MAX_PARAMETERS, TOLERANCE, UNKNOWN, trace_to_onnx
from uml_core.errors import InputError, first_line
from uml_core.serving import EXPORT_FORMATS
from uml_core.serving.target_predictor import TargetPredictor

FORMAT_VERSION = 1
ONNX_PACKAGE = "onnx==1.23.2"
OUTPUTS = ("logits", "probabilities")


class TargetPath(nn.Module):
    """From embeddings (B, D), or decoded pictures (B, H, W, 3), to logits and probabilities, all in float32."""

    def __init__(self, predictor: TargetPredictor, encoder: PixelEncoder | None = None) -> None:
        super().__init__()
        self._encoder, self._normalize = encoder, predictor.normalize
        self.backbone = None if encoder is None else encoder.module
        self.register_buffer("head_CD", torch.tensor(predictor.head))
        bias_C = np.zeros(len(predictor.head), np.float32) if predictor.bias is None else predictor.bias
        self.register_buffer("bias_C", torch.tensor(bias_C))

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, C) and probabilities (B, C)."""
        embedding_BD = rows
        if self._encoder is not None:
            pixels_B3HW = self._encoder.normalised(rows.permute(0, 3, 1, 2).float())
            embedding_BD = self._encoder.features(pixels_B3HW).float()
        if self._normalize:
            embedding_BD = nn.functional.normalize(embedding_BD, dim=-1)
        logits_BC = nn.functional.linear(embedding_BD, self.get_buffer("head_CD"), self.get_buffer("bias_C"))
        return logits_BC, torch.softmax(logits_BC, dim=1)


def export_head(predictor: TargetPredictor, directory: Path, formats: Sequence[str] = EXPORT_FORMATS) -> list[Path]:
    """Write the target path in some formats, and head.json beside them; returns the files.

    Raises:
        InputError: format onnx is asked for without the package onnx, or of an encoder that cannot be traced.
    """
    description, graphs = describe(predictor), {}
    if "onnx" in formats:  # before anything is written: either may be refused
        graphs["head.onnx"] = head_graph(predictor)
        if predictor.encoder_weights is not None and predictor.modality == "image":
            encoder = tuned_encoder(predictor)
            graphs["model.onnx"] = picture_graph(encoder, predictor)
            description["model.onnx"] = {
                "input": {"name": "picture", "dtype": "uint8", "shape": ["batch", *encoder.picture_size, 3]},
                "outputs": list(OUTPUTS),
                "preprocessing": encoder.preprocessing,  # its mean and standard deviation are in the graph
            }
    directory.mkdir(parents=True, exist_ok=True)
    files = [directory / "head.json"]
    files[0].write_text(json.dumps(description, indent=1, ensure_ascii=False), encoding="utf-8")
    if "safetensors" in formats:
        files.append(directory / "head.safetensors")
        save_head(predictor.head_weights, files[-1])
    if predictor.encoder_weights is not None:
        files.append(directory / "encoder.safetensors")
        save_file(dict(predictor.encoder_weights), files[-1])
    for name, graph in graphs.items():
        files.append(directory / name)
        files[-1].write_bytes(graph)
    return files


def describe(predictor: TargetPredictor) -> dict[str, Any]:
    """What head.json says: everything but the numbers."""
    num_classes, dim = predictor.head.shape
    return {
        "format_version": FORMAT_VERSION,
        "input": {"name": "embedding", "dim": dim, "dtype": "float32", "normalize": predictor.normalize},
        "outputs": list(OUTPUTS),
        "num_classes": num_classes,
        "classes": list(predictor.classes),
        "modality": predictor.modality,
        "encoder": None if predictor.encoder is None else predictor.encoder.model_dump(mode="json"),
        "encoder_is_fine_tuned": predictor.encoder_weights is not None,
        "precision": predictor.precision,
    }


def head_graph(predictor: TargetPredictor) -> bytes:
    """The graph from embeddings on, its description in its metadata, checked by onnx's own checker.

    Raises:
        InputError: the package onnx is not installed.
    """
    try:
        import onnx  # of no use to anything else here
    except ImportError:
        raise InputError(
            f"--format onnx needs the package onnx; run pip install {ONNX_PACKAGE}, or take --format safetensors"
        ) from None
    # Two rows: a trace may take an axis of size 1 for a constant.
    model = onnx.load_from_string(_traced(TargetPath(predictor), torch.ones(2, predictor.head.shape[1]), "embedding"))
    onnx.helper.set_model_props(model, {"description": json.dumps(describe(predictor), ensure_ascii=False)})
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def tuned_encoder(predictor: TargetPredictor) -> PixelEncoder:
    """The encoder of a fine-tuned run with its weights, as its authors wrote it, on the CPU in float32."""
    assert predictor.encoder is not None
    assert predictor.encoder_weights is not None
    encoder = build_encoder(predictor.encoder.model_copy(update={"compile": False}), predictor.modality)
    assert isinstance(encoder, PixelEncoder)
    encoder.load_random(0)
    encoder.module.load_state_dict(predictor.encoder_weights)
    return encoder


def picture_graph(encoder: PixelEncoder, predictor: TargetPredictor) -> bytes:
    """The graph of encoder and head.

    Raises:
        InputError: the encoder is too large for one file, cannot be traced, or its graph gives other logits.
    """
    import onnxruntime  # takes half a second

    path = TargetPath(predictor, encoder)
    refusal = f"encoder {encoder.config.name} cannot be written as an ONNX graph ({{}}); take --format safetensors"
    if sum(weight.numel() for weight in path.parameters()) > MAX_PARAMETERS:
        raise InputError(refusal.format(f"more than {MAX_PARAMETERS:,} parameters"))
    try:
        graph = _traced(path, _pictures(encoder, 2), "picture")
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        checked = _pictures(encoder, 3)  # another number of them: no size may be frozen in
        (logits_BC,) = session.run(OUTPUTS[:1], {"picture": checked.numpy()})
    except UNKNOWN as problem:
        raise InputError(refusal.format(first_line(problem))) from None
    with torch.no_grad():
        expected_BC = path(checked)[0].numpy()
    if not np.abs(logits_BC - expected_BC).max() <= TOLERANCE * np.abs(expected_BC).max():
        raise InputError(refusal.format("the graph gives other logits"))
    return graph


def _traced(path: TargetPath, rows: Tensor, name: str) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "path.onnx"
        trace_to_onnx(path.eval(), [rows], file, free=(0,), inputs=(name,), outputs=OUTPUTS)
        return file.read_bytes()


def _pictures(encoder: PixelEncoder, count: int) -> Tensor:
    shape = (count, *encoder.picture_size, 3)
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(count))
