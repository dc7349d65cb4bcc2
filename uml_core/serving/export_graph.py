"""A fine-tuned picture model as one ONNX graph: decoded pictures in, logits and probabilities out.

In: a `TargetPredictor` with the weights of its encoder. Out: a serialised graph, run once against torch.

    input picture (B, H, W, 3) uint8, resized and cropped; outputs logits (B, C) and probabilities (B, C) float32

Shape legend: B batch, H height, W width, D embedding width, C classes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from uml_core.encoders import build_encoder
from uml_core.encoders.image.timm_encoder import PixelEncoder
from uml_core.encoders.openvino_engine import MAX_PARAMETERS, TOLERANCE, UNKNOWN, trace_to_onnx
from uml_core.encoders.weights import first_line
from uml_core.errors import InputError
from uml_core.serving.target_predictor import TargetPredictor

INPUT, OUTPUTS = "picture", ("logits", "probabilities")


class PicturePath(nn.Module):
    """From decoded pictures to logits and probabilities, as `TargetPredictor` goes it in float32."""

    def __init__(self, encoder: PixelEncoder, predictor: TargetPredictor) -> None:
        super().__init__()
        self._encoder, self._normalize = encoder, predictor.normalize
        self.backbone = encoder.module
        self.register_buffer("head_CD", predictor.head.clone())

    def forward(self, picture_BHW3: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, C) and probabilities (B, C)."""
        pixels_B3HW = self._encoder.normalised(picture_BHW3.permute(0, 3, 1, 2).float())
        embedding_BD = self._encoder.features(pixels_B3HW).float()
        if self._normalize:
            embedding_BD = nn.functional.normalize(embedding_BD, dim=-1)
        logits_BC = embedding_BD @ self.get_buffer("head_CD").T
        return logits_BC, torch.softmax(logits_BC, dim=1)


def tuned_encoder(predictor: TargetPredictor) -> PixelEncoder:
    """Return the encoder of a fine-tuned run with its weights, as its authors wrote it, on the CPU in float32."""
    assert predictor.encoder is not None
    assert predictor.encoder_weights is not None
    encoder = build_encoder(predictor.encoder.model_copy(update={"compile": False}), predictor.modality)
    assert isinstance(encoder, PixelEncoder)
    encoder.load_tuned(predictor.encoder_weights)
    return encoder


def description_of_graph(encoder: PixelEncoder) -> dict[str, Any]:
    """Return what the graph takes, and how a picture becomes it; mean and standard deviation are in the graph."""
    height, width = encoder.picture_size
    return {
        "input": {"name": INPUT, "dtype": "uint8", "shape": ["batch", height, width, 3]},
        "outputs": list(OUTPUTS),
        "preprocessing": encoder.preprocessing,
    }


def picture_graph(encoder: PixelEncoder, predictor: TargetPredictor) -> bytes:
    """Return the graph of encoder and head.

    Raises:
        InputError: the encoder is too large for one file, cannot be traced, or its graph gives other logits.
    """
    import onnxruntime  # takes half a second

    path = PicturePath(encoder, predictor).eval()
    refusal = f"encoder {encoder.config.name} cannot be written as an ONNX graph ({{}}); take --format safetensors"
    if sum(weight.numel() for weight in path.parameters()) > MAX_PARAMETERS:
        raise InputError(refusal.format(f"more than {MAX_PARAMETERS:,} parameters"))
    try:
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / "model.onnx"
            trace_to_onnx(path, [_pictures(encoder, 2)], file, free=(0,), inputs=(INPUT,), outputs=OUTPUTS)
            graph = file.read_bytes()
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        checked = _pictures(encoder, 3)  # another number of them: no size may be frozen in
        (logits_BC,) = session.run(OUTPUTS[:1], {INPUT: checked.numpy()})
    except UNKNOWN as problem:
        raise InputError(refusal.format(first_line(problem))) from None
    with torch.no_grad():
        expected_BC = path(checked)[0].numpy()
    if not np.abs(logits_BC - expected_BC).max() <= TOLERANCE * np.abs(expected_BC).max():
        raise InputError(refusal.format("the graph gives other logits"))
    return graph


def _pictures(encoder: PixelEncoder, count: int) -> Tensor:
    shape = (count, *encoder.picture_size, 3)
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(count))
