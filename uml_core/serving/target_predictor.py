"""The trained supervised target model as it is used: raw inputs of the target modality in, class and probability out.

In: a folded head (C, D) with its classes and encoder settings. Auxiliary corpora are gone by now. Its weights are
target_head.safetensors (and encoder.safetensors of a fine-tuned run).

Shape legend: B batch, D embedding width, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file
from scipy.special import softmax

from uml_core.config import Experiment
from uml_core.encoders import Encoder
from uml_core.serving.predictor import Predictions, Predictor, read_settings

if TYPE_CHECKING:  # torch: two seconds that a head, a matrix, has no use for
    from torch import Tensor

    from uml_core.models.shared_head import SharedHeadModel

HEAD_FILE = "target_head.safetensors"
ENCODER_FILE = "encoder.safetensors"


@dataclass(frozen=True)
class TargetPredictor(Predictor):
    """The target path of a trained model: encoder settings, folded head (C, D) and its bias (C,), class names."""

    ready_column, ready_format = "embedding", "embeddings"

    normalize: bool
    head: npt.NDArray[np.float32]
    encoder_weights: Mapping[str, Tensor] | None = None  # of a fine-tuned run; None: those the encoder's settings name

    bias: npt.NDArray[np.float32] | None = None  # of a solved head

    @property
    def head_weights(self) -> dict[str, npt.NDArray[np.float32]]:
        """What `folded_target_head` made."""
        return {"head.weight": self.head, **({} if self.bias is None else {"head.bias": self.bias})}

    @classmethod
    def from_model(
        cls, experiment: Experiment, model: SharedHeadModel, classes: tuple[str, ...], *, precision: str
    ) -> TargetPredictor:
        """Fold a trained model's target path. Everything else the model holds is left behind."""
        from uml_core.models.shared_head import UnitLength, folded_target_head

        corpus = experiment.corpora[experiment.target]
        weights = {name: each.numpy() for name, each in folded_target_head(model, experiment.target).items()}
        return cls(
            classes=classes,
            modality="vector" if corpus.format == "embeddings" else corpus.modality,
            encoder=experiment.encoder_of(experiment.target),
            precision=precision,
            normalize=experiment.model.normalize or isinstance(model.projections[experiment.target], UnitLength),
            head=weights["head.weight"],
            bias=weights.get("head.bias"),
        )

    def load_encoder(self, encoder: Encoder, *, device: str = "cpu") -> None:
        """Load the encoder's weights where they run: the fine-tuned ones, where there are."""
        if self.encoder_weights is None:
            super().load_encoder(encoder, device=device)
            return
        from uml_core.encoders.torch_encoder import TrainableEncoder

        assert isinstance(encoder, TrainableEncoder)
        encoder.load_weights(self.encoder_weights, device=device, precision=self.precision)

    def _ready_example(self) -> Any:
        return [0.0] * self.head.shape[1]

    def classify(self, values: Any) -> Predictions:
        """Class and probability for embeddings (B, D)."""
        rows = values if len(values) else np.empty((0, self.head.shape[1]))
        embeddings_BD = np.asarray(rows, dtype=np.float32)
        if self.normalize:
            lengths_B1 = np.linalg.norm(embeddings_BD, axis=1, keepdims=True)
            embeddings_BD = embeddings_BD / np.maximum(lengths_B1, 1e-12)
        logits_BC = embeddings_BD @ self.head.T + (0 if self.bias is None else self.bias)
        probabilities_BC = softmax(logits_BC.astype(np.float64), axis=1)
        codes_B = probabilities_BC.argmax(axis=1)
        return Predictions([self.classes[code] for code in codes_B], probabilities_BC.max(axis=1), logits_BC)

    def save(self, directory: Path) -> None:
        self._save_settings(directory, normalize=self.normalize, fine_tuned=self.encoder_weights is not None)
        save_file(self.head_weights, directory / HEAD_FILE)
        if self.encoder_weights is not None:
            from safetensors import torch as tensors

            tensors.save_file(dict(self.encoder_weights), directory / ENCODER_FILE)

    @classmethod
    def load(cls, directory: Path) -> TargetPredictor:
        settings, shared = read_settings(directory)
        weights, encoder_weights = load_file(directory / HEAD_FILE), None
        if settings.get("fine_tuned"):
            from safetensors import torch as tensors

            encoder_weights = tensors.load_file(directory / ENCODER_FILE)
        return cls(
            **shared,
            normalize=settings["normalize"],
            head=weights["head.weight"],
            bias=weights.get("head.bias"),
            encoder_weights=encoder_weights,
        )


def load_predictor_folder(directory: Path) -> Predictor:
    """Load what the `save` of either predictor wrote."""
    if read_settings(directory)[0].get("objective") == "self_supervised":
        # scikit-learn with it: a second that serving a head need not wait for.
        from uml_core.serving.sequence_predictor import SequencePredictor

        return SequencePredictor.load(directory)
    return TargetPredictor.load(directory)
