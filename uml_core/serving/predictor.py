"""What a trained target model is to those who use it, whichever objective trained it.

In: raw inputs of the target modality, or what its encoder would make of them. Out: class and probability. It is saved
as predictor.json beside its weights, and needs neither Ray nor MLflow.

Shape legend: B batch, C classes.
"""

from __future__ import annotations

import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from uml_core.config import CorpusConfig, EncoderConfig
from uml_core.corpora.ready.adopt import ReadyRows, stream_ready
from uml_core.encoders import Decoded, Encoder, build_encoder

PREDICTOR_FILE = "predictor.json"
INPUT_COLUMNS = {"image": "content", "audio": "content", "text": "text"}


@dataclass(frozen=True)
class Predictions:
    """For each of B inputs: the class and its probability, and all logits (B, C)."""

    classes: list[str]
    probabilities: npt.NDArray[np.float64]
    logits: npt.NDArray[np.float32]

    def ranked(self, top: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Codes and probabilities (B, K) of each input's `top` most probable classes, K at most C."""
        codes_BK = np.argsort(-self.logits, axis=1, kind="stable")[:, :top]
        return codes_BK, np.take_along_axis(softmax(self.logits.astype(np.float64), axis=1), codes_BK, axis=1)


@dataclass(frozen=True)
class Predictor(ABC):
    """A trained target model of either objective."""

    ready_column: ClassVar[str]  # the column that inputs come in where there is no encoder
    ready_format: ClassVar[str]  # of a corpus of such inputs

    classes: tuple[str, ...]
    modality: str
    encoder: EncoderConfig | None  # None: inputs are what an encoder would give
    precision: str

    @property
    def input_column(self) -> str:
        """The column raw inputs come in: content (file bytes), text, or the ready column."""
        return self.ready_column if self.encoder is None else INPUT_COLUMNS[self.modality]

    def input_example(self) -> Any:
        """One made-up input as it comes in the column."""
        return self._ready_example() if self.encoder is None else raw_example(self.modality)

    def build_encoder(self) -> Encoder | None:
        """The target's encoder without its weights; None where inputs are ready."""
        return None if self.encoder is None else build_encoder(self.encoder, self.modality)

    def load_encoder(self, encoder: Encoder, *, device: str = "cpu") -> None:
        """Load the encoder's weights where they run."""
        encoder.load(device=device, precision=self.precision)

    @abstractmethod
    def _ready_example(self) -> Any: ...

    @abstractmethod
    def classify(self, values: Any) -> Predictions:
        """Classify what an encoder gives."""

    def classify_decoded(self, encoder: Encoder, rows: Sequence[Decoded], *, batch_size: int) -> Predictions:
        """Encode decoded rows and classify them."""
        return self.classify(encoder.encode_all(rows, batch_size))

    def classify_ready(self, values: Sequence[Any]) -> Predictions:
        """Classify inputs as they come in the ready column."""
        return self.classify(values)

    def ready_inputs(self, path: str) -> Iterator[tuple[ReadyRows, Predictions]]:
        """Yield the rows of a file of ready inputs with their predictions."""
        config = CorpusConfig.model_validate({"modality": self.modality, "format": self.ready_format, "path": path})
        for chunk in stream_ready("input", config):
            yield chunk, self.classify(chunk.values)

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Write predictor.json and the weights."""

    def _save_settings(self, directory: Path, **more: Any) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        settings = {
            "classes": self.classes,
            "modality": self.modality,
            "encoder": None if self.encoder is None else self.encoder.model_dump(mode="json"),
            "precision": self.precision,
            **more,
        }
        (directory / PREDICTOR_FILE).write_text(json.dumps(settings, indent=1, ensure_ascii=False), encoding="utf-8")


def read_settings(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What predictor.json says: all of it, and of it the fields that every predictor has."""
    settings = json.loads((directory / PREDICTOR_FILE).read_text(encoding="utf-8"))
    encoder = settings["encoder"]
    shared = {
        "classes": tuple(settings["classes"]),
        "modality": settings["modality"],
        "encoder": None if encoder is None else EncoderConfig.model_validate(encoder),
        "precision": settings["precision"],
    }
    return settings, shared


def raw_example(modality: str) -> bytes | str:
    """One raw input, made up, to show a logged model with: no row of a user is copied for it.

    A picture of 32 x 32 pixels or a tone of a tenth of a second, as the bytes of a file; or a sentence.
    """
    file = io.BytesIO()
    if modality == "image":
        from PIL import Image  # training on embeddings needs neither of the two

        Image.linear_gradient("L").resize((32, 32)).convert("RGB").save(file, "png")
    elif modality == "audio":
        import soundfile

        tone_S = 0.25 * np.sin(2 * np.pi * 440 / 16_000 * np.arange(1_600))
        soundfile.write(file, tone_S, 16_000, format="WAV")
    else:
        return "a short sentence"
    return file.getvalue()
