"""The trained target path as files that need none of this code: one matrix, its classes, and an ONNX graph of them.

In: a `TargetPredictor`, whose path from embedding to logits is one matrix. Out, in a folder:

    head.safetensors   head.weight (C, D) float32
    encoder.safetensors   of a fine-tuned run, with either format: the weights of its encoder
    head.json          the classes in the order of the rows, whether embeddings are normalised first, the encoder
    head.onnx          input embedding (B, D) float32; outputs logits (B, C) and probabilities (B, C)
    model.onnx         of a fine-tuned run on pictures: encoder and head as one graph (`uml_core.serving.export_graph`)

    from safetensors.numpy import load_file
    logits = embedding @ load_file("head.safetensors")["head.weight"].T

Shape legend: B batch, D embedding width, C classes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from uml_core.errors import InputError
from uml_core.serving.target_predictor import TargetPredictor

FORMATS = ("safetensors", "onnx")
FORMAT_VERSION = 1
ONNX_PACKAGE = "onnx==1.23.2"
# Old enough for every runtime of the last years: nothing newer is needed for a product and a softmax.
OPSET, IR_VERSION = 17, 8
NORM_FLOOR = 1e-12  # torch.nn.functional.normalize divides by max(norm, this)


def export_head(predictor: TargetPredictor, directory: Path, formats: tuple[str, ...] = FORMATS) -> list[Path]:
    """Write the target path in some formats, and head.json beside them; returns the files.

    Raises:
        InputError: format onnx is asked for without the package onnx, or of an encoder that cannot be traced.
    """
    graph = onnx_graph(predictor) if "onnx" in formats else None  # before anything is written
    description, whole = description_of(predictor), None
    if graph is not None and predictor.encoder_weights is not None and predictor.modality == "image":
        from uml_core.serving.export_graph import (  # encoders take seconds
            description_of_graph,
            picture_graph,
            tuned_encoder,
        )

        encoder = tuned_encoder(predictor)
        whole, description["model.onnx"] = picture_graph(encoder, predictor), description_of_graph(encoder)
    directory.mkdir(parents=True, exist_ok=True)
    files = [directory / "head.json"]
    files[0].write_text(json.dumps(description, indent=1, ensure_ascii=False), encoding="utf-8")
    if "safetensors" in formats:
        files.append(directory / "head.safetensors")
        save_file({"head.weight": predictor.head}, files[-1])
    if predictor.encoder_weights is not None:
        files.append(directory / "encoder.safetensors")
        save_file(dict(predictor.encoder_weights), files[-1])
    if graph is not None:
        files.append(directory / "head.onnx")
        files[-1].write_bytes(graph)
    if whole is not None:
        files.append(directory / "model.onnx")
        files[-1].write_bytes(whole)
    return files


def description_of(predictor: TargetPredictor) -> dict[str, Any]:
    """Return what head.json says: everything but the numbers."""
    num_classes, dim = predictor.head.shape
    return {
        "format_version": FORMAT_VERSION,
        "input": {"name": "embedding", "dim": dim, "dtype": "float32", "normalize": predictor.normalize},
        "outputs": ["logits", "probabilities"],
        "num_classes": num_classes,
        "classes": list(predictor.classes),
        "modality": predictor.modality,
        "encoder": None if predictor.encoder is None else predictor.encoder.model_dump(mode="json"),
        "encoder_is_fine_tuned": predictor.encoder_weights is not None,
        "precision": predictor.precision,
    }


def onnx_graph(predictor: TargetPredictor) -> bytes:
    """Return the target path as a serialised ONNX model, checked by onnx's own checker.

    Raises:
        InputError: the package onnx is not installed.
    """
    try:
        import onnx  # of no use to anything else here
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        raise InputError(
            f"--format onnx needs the package onnx; run pip install {ONNX_PACKAGE}, or take --format safetensors"
        ) from None
    num_classes, dim = predictor.head.shape
    nodes, source = [], "embedding"
    constants = [numpy_helper.from_array(predictor.head.T.contiguous().numpy(), "head_DC")]
    if predictor.normalize:
        constants.append(helper.make_tensor("floor", TensorProto.FLOAT, [], [NORM_FLOOR]))
        nodes = [
            helper.make_node("ReduceL2", ["embedding"], ["norm"], axes=[1], keepdims=1),
            helper.make_node("Max", ["norm", "floor"], ["divisor"]),
            helper.make_node("Div", ["embedding", "divisor"], ["normalised"]),
        ]
        source = "normalised"
    nodes.append(helper.make_node("MatMul", [source, "head_DC"], ["logits"]))
    nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1))
    graph = helper.make_graph(
        nodes,
        "target_head",
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", dim])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", num_classes])
            for name in ("logits", "probabilities")
        ],
        constants,
    )
    model = helper.make_model(
        graph, producer_name="uml", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    helper.set_model_props(model, {"description": json.dumps(description_of(predictor), ensure_ascii=False)})
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())
