"""What an encoder is: configuration that is cheap to build and pickle, and weights that are loaded where they run.

In: one raw row (file bytes, or a sentence). Out: one embedding of width D.
`decode` runs one row at a time, on any CPU, without the weights; `encode` runs batches, after `load`.

Shape legend: B batch, D embedding width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from uml_core.config import EncoderConfig, hash_of

Raw = bytes | str  # file content for images and audio, a sentence for text
Decoded = npt.NDArray[Any] | str  # uint8 (H, W, 3) for images, float32 (samples,) for audio, the sentence for text


class RowError(ValueError):
    """One row cannot be read; its message becomes the row's reason in rejected.parquet."""


class Encoder(ABC):
    """A frozen encoder of one modality. Subclasses set `modality` and fill in the four methods below."""

    modality: ClassVar[str]

    def __init__(self, config: EncoderConfig) -> None:
        self.config = config

    def __reduce__(self) -> tuple[type[Encoder], tuple[EncoderConfig]]:
        """Pickle the configuration only: weights are loaded where they are used."""
        return type(self), (self.config,)

    @property
    @abstractmethod
    def dim(self) -> int:
        """Width D of one embedding, known without loading weights."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return everything that decides the numbers: name, weights' revision, preprocessing, pooling (JSON values)."""

    @abstractmethod
    def decode(self, raw: Raw) -> Decoded:
        """Read one raw row into the form `encode` takes. Raises RowError with a reason a person understands."""

    @abstractmethod
    def load(self, *, device: str = "cpu", precision: str = "float32") -> None:
        """Load the weights onto a device; `precision` is the arithmetic of the forward pass."""

    @abstractmethod
    def encode(self, rows: Sequence[Decoded]) -> npt.NDArray[np.float32]:
        """Encode B decoded rows into embeddings (B, D), float32, in their order."""

    def cost(self, row: Decoded) -> int:
        """Relative cost of a decoded row; rows of like cost are batched together. 0: all alike."""
        return 0

    def encode_all(self, rows: Sequence[Decoded], batch_size: int) -> npt.NDArray[np.float32]:
        """Encode N decoded rows in batches of rows of like cost; returns (N, D) in the given order."""
        order = sorted(range(len(rows)), key=lambda index: self.cost(rows[index]))
        embeddings = np.empty((len(rows), self.dim), dtype=np.float32)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            embeddings[batch] = self.encode([rows[index] for index in batch])
        return embeddings


def fingerprint(encoder: Encoder, *, dtype: str, precision: str) -> str:
    """Return the store folder's name for an encoder: a hash of identity, storage dtype and arithmetic precision."""
    return hash_of({**encoder.identity(), "dim": encoder.dim, "dtype": dtype, "precision": precision})
