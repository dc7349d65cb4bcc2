"""What a trained target model is to those who use it, whichever objective trained it.

Shape legend: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from uml_core.corpora.rows import Row
from uml_core.encoders import Decoded, Encoder

PREDICTOR_FILE = "predictor.json"
INPUT_COLUMNS = {"image": "content", "audio": "content", "text": "text", "vector": "embedding"}


@dataclass(frozen=True)
class Predictions:
    """For each of B inputs: the class and its probability, and all logits (B, C)."""

    classes: list[str]
    probabilities: npt.NDArray[np.float64]
    logits: npt.NDArray[np.float32]


class ReadyRows(Protocol):
    """A chunk of ready inputs: the rows that were classified, and those that cannot be used."""

    @property
    def rows(self) -> tuple[Row, ...]: ...
    @property
    def rejected(self) -> tuple[Row, ...]: ...


class Predictor(Protocol):
    """A trained target model of either objective."""

    @property
    def modality(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def input_column(self) -> str: ...
    def input_example(self) -> Any: ...
    def build_encoder(self) -> Encoder | None: ...
    def load_encoder(self, encoder: Encoder, *, device: str = "cpu") -> None: ...
    def classify_decoded(self, encoder: Encoder, rows: Sequence[Decoded], *, batch_size: int) -> Predictions: ...
    def classify_ready(self, values: Sequence[Any]) -> Predictions: ...
    def ready_inputs(self, path: str) -> Iterator[tuple[ReadyRows, Predictions]]: ...
    def save(self, directory: Path) -> None: ...
