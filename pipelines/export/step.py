"""A logged model to files that need none of this project's code.

In: a logged model of objective supervised. Out: a folder with head.json, head.safetensors and head.onnx; of a
fine-tuned model also encoder.safetensors, and model.onnx from pictures to logits (`uml_core.serving.export` says how).

    python -m pipelines.export --model runs:/RUN_ID/model --output head
    python -m pipelines.export --model runs:/RUN_ID/model --output head --format safetensors

No experiment file is needed, and Ray does not start. The tracking URI is --tracking-uri, else $MLFLOW_TRACKING_URI,
else the experiment file's default.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from pipelines.command_line import Summary
from pipelines.places import OutputFolder, absolute_path
from pipelines.progress import stage
from uml_core.errors import InputError, listing
from uml_core.serving import EXPORT_FORMATS
from uml_core.serving.export import export_head
from uml_core.serving.target_predictor import TargetPredictor
from uml_core.tracking.reading import load_predictor


def run(model_uri: str, output: str, tracking_uri: str, *, formats: Sequence[str] = EXPORT_FORMATS) -> Summary:
    """Fetch a model and write its target path; returns the files and the shape of the matrix."""
    if unknown := [name for name in formats if name not in EXPORT_FORMATS]:
        raise InputError(f"--format is {unknown[0]}; formats are {listing(EXPORT_FORMATS)}")
    with tempfile.TemporaryDirectory() as directory:
        with stage("read", "reading the model"):
            predictor = load_predictor(absolute_path(tracking_uri), model_uri, Path(directory))
        if not isinstance(predictor, TargetPredictor):
            raise InputError(
                f"--model {model_uri} is of objective self_supervised, whose path is not one matrix; "
                "only models of objective supervised can be exported"
            )
        folder = OutputFolder("--output", output)
        files = export_head(predictor, Path(directory, "exported"), formats)
        for file in files:
            folder.write(file.name, file.read_bytes())
    num_classes, dim = predictor.head.shape
    names = [file.name for file in files]
    text = f"{num_classes} classes over embeddings {dim} wide: {', '.join(names)} in {folder.place}"
    return Summary(text, {"output": folder.place, "files": names, "shape": [num_classes, dim]})
