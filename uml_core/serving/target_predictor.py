"""The trained target model as it is used: raw inputs of the target modality in, class and probability out.

In: a folded head (C, D) with its classes and encoder settings. Out: predictions. Auxiliary corpora are gone by now.
It is saved as predictor.json beside target_head.safetensors (and encoder.safetensors of a fine-tuned run), and needs
neither Ray nor MLflow.

Shape legend: B batch, D embedding width, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from uml_core.config import CorpusConfig, EncoderConfig, Experiment
from uml_core.corpora.ready.embeddings import ReadyEmbeddings, stream_ready_embeddings
from uml_core.encoders import Decoded, Encoder, Raw, build_encoder
from uml_core.models import SharedHeadModel, folded_target_head
from uml_core.serving.input_examples import raw_example
from uml_core.serving.predictor import INPUT_COLUMNS, PREDICTOR_FILE, Predictions

HEAD_FILE = "target_head.safetensors"
ENCODER_FILE = "encoder.safetensors"


@dataclass(frozen=True)
class TargetPredictor:
    """The target path of a trained model: encoder settings, folded head (C, D), class names."""

    classes: tuple[str, ...]
    modality: str
    encoder: EncoderConfig | None  # None for modality vector: inputs are embeddings
    precision: str
    normalize: bool
    head: Tensor
    encoder_weights: Mapping[str, Tensor] | None = None  # of a fine-tuned run; None: those the encoder's settings name

    @classmethod
    def of(
        cls, experiment: Experiment, model: SharedHeadModel, classes: tuple[str, ...], *, precision: str
    ) -> TargetPredictor:
        """Fold a trained model's target path. Everything else the model holds is left behind."""
        corpus = experiment.corpora[experiment.target]
        return cls(
            classes=classes,
            modality="vector" if corpus.format == "embeddings" else corpus.modality,
            encoder=experiment.encoder_of(experiment.target),
            precision=precision,
            normalize=experiment.model.normalize,
            head=folded_target_head(model, experiment.target).cpu(),
        )

    @property
    def input_column(self) -> str:
        """The column raw inputs come in: content (file bytes), text, or embedding."""
        return INPUT_COLUMNS[self.modality]

    def input_example(self) -> Any:
        """Return one made-up input as it comes in the column."""
        return raw_example(self.modality) if self.encoder is not None else [0.0] * self.head.shape[1]

    def build_encoder(self) -> Encoder | None:
        """Return the target's encoder without its weights; None where inputs are embeddings."""
        return None if self.encoder is None else build_encoder(self.encoder, self.modality)

    def load_encoder(self, encoder: Encoder, *, device: str = "cpu") -> None:
        """Load the encoder's weights where they run: the fine-tuned ones, where there are."""
        if self.encoder_weights is None:
            encoder.load(device=device, precision=self.precision)
            return
        from uml_core.encoders.trainable import TrainableEncoder

        assert isinstance(encoder, TrainableEncoder)
        encoder.load_weights(self.encoder_weights, device=device, precision=self.precision)

    def classify(self, embedding_BD: npt.NDArray[np.float32]) -> Predictions:
        """Return class and probability for embeddings (B, D)."""
        embeddings = torch.from_numpy(np.ascontiguousarray(embedding_BD, dtype=np.float32))
        if self.normalize:
            embeddings = nn.functional.normalize(embeddings, dim=-1)
        logits_BC = embeddings @ self.head.T
        probabilities_BC = torch.softmax(logits_BC.double(), dim=1)
        top_B, code_B = probabilities_BC.max(dim=1)
        return Predictions([self.classes[code] for code in code_B.tolist()], top_B.numpy(), logits_BC.numpy())

    def classify_decoded(self, encoder: Encoder, rows: Sequence[Decoded], *, batch_size: int) -> Predictions:
        """Encode decoded rows and classify them."""
        return self.classify(encoder.encode_all(rows, batch_size))

    def classify_ready(self, values: Sequence[Any]) -> Predictions:
        """Classify embeddings as they come in a column."""
        return self.classify(np.asarray(values, dtype=np.float32))

    def ready_inputs(self, path: str) -> Iterator[tuple[ReadyEmbeddings, Predictions]]:
        """Yield the rows of a file of ready embeddings with their predictions."""
        config = CorpusConfig(modality="vector", format="embeddings", path=path)
        for chunk in stream_ready_embeddings("input", config):
            yield chunk, self.classify(chunk.embeddings)

    def predict(self, raw: Sequence[Raw], *, batch_size: int = 32) -> Predictions:
        """Decode, encode and classify raw inputs on this process's CPU. Raises RowError for an unreadable input."""
        encoder = self.build_encoder()
        assert encoder is not None, "inputs are embeddings: call classify()"
        self.load_encoder(encoder)
        decoded: list[Decoded] = [encoder.decode(row) for row in raw]
        return self.classify_decoded(encoder, decoded, batch_size=batch_size)

    def save(self, directory: Path) -> None:
        """Write predictor.json and target_head.safetensors."""
        directory.mkdir(parents=True, exist_ok=True)
        settings = {
            "classes": self.classes,
            "modality": self.modality,
            "encoder": None if self.encoder is None else self.encoder.model_dump(mode="json"),
            "precision": self.precision,
            "normalize": self.normalize,
            "fine_tuned": self.encoder_weights is not None,
        }
        (directory / PREDICTOR_FILE).write_text(json.dumps(settings, indent=1, ensure_ascii=False), encoding="utf-8")
        save_file({"head.weight": self.head}, directory / HEAD_FILE)
        if self.encoder_weights is not None:
            save_file(dict(self.encoder_weights), directory / ENCODER_FILE)

    @classmethod
    def load(cls, directory: Path) -> TargetPredictor:
        """Read what `save` wrote."""
        settings = json.loads((directory / PREDICTOR_FILE).read_text(encoding="utf-8"))
        encoder = settings["encoder"]
        return cls(
            classes=tuple(settings["classes"]),
            modality=settings["modality"],
            encoder=None if encoder is None else EncoderConfig.model_validate(encoder),
            precision=settings["precision"],
            normalize=settings["normalize"],
            head=load_file(directory / HEAD_FILE)["head.weight"],
            encoder_weights=load_file(directory / ENCODER_FILE) if settings.get("fine_tuned") else None,
        )
