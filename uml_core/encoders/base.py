"""What an encoder is: cheap to build from its configuration, which is what travels, and loaded where it runs.

In: one raw row (file bytes, or a sentence). Out: one embedding of width D, or a sequence of T tokens of width D.
`decode` runs one row at a time, on any CPU, without the weights; `encode` runs batches, after `load`.

A new encoder subclasses `Encoder`, sets `modality` and fills in `dim`, `decode`, `load` and `encode`. It can live in
any importable module: `encoders.image: {source: module, name: "my_encoders:MeanColour"}`.

Shape legend: B batch, N rows, T tokens or frames (T_b those of row b), D embedding width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from uml_core.config import EncoderConfig, hash_of
from uml_core.corpora.content import Raw
from uml_core.encoders.weights import source_digest
from uml_core.errors import InputError


@dataclass(frozen=True)
class Clip:
    """A sound as its model reads it: features of a fixed or variable length, and the samples they were made from."""

    features: npt.NDArray[np.float32]
    num_samples: int


# uint8 (H, W, 3) for images, float32 (samples,) or Clip for audio, int32 token ids (T,) for text; own encoders use any
Decoded = npt.NDArray[Any] | str | Clip
Embeddings = npt.NDArray[np.float32]  # (N, D)
TokenSequences = list[npt.NDArray[np.float32]]  # N of (T_b, D), without padding


class Encoder(ABC):
    """A frozen encoder of one modality. Subclasses set `modality` and fill in the abstract methods."""

    modality: ClassVar[str]
    # Rows of unlike cost may share a batch, padded, without changing one another. False: only rows of equal cost do.
    pads_rows: bool = True
    # What one row of `batch_size` pays for, in units of `cost`. None: a batch is so many rows, whatever they cost.
    unit_cost: int | None = None
    # Rows embedded and stored together where the settings leave it open: among them, rows of like cost are found.
    part_rows: int = 256
    # Rows in a batch where the settings leave it open: what was measured to be fast.
    cpu_batch_size: int = 16
    gpu_batch_size: int = 256

    def __init__(self, config: EncoderConfig) -> None:
        self.config = config

    @property
    def yields_tokens(self) -> bool:
        """Whether rows become sequences of tokens (T, D) instead of one embedding (D,)."""
        return bool(self.config.pooling == "tokens")

    @property
    def vocabulary(self) -> int | None:
        """The number of distinct tokens, for an encoder of discrete tokens (T, 1); None for vectors."""
        return None

    @property
    @abstractmethod
    def dim(self) -> int:
        """Width D of one embedding or token, known without loading weights."""

    def identity(self) -> dict[str, Any]:
        """Everything that decides the numbers, as JSON values: by default every setting, and a digest of the file the
        encoder is written in."""
        settings = self.config.model_dump(mode="json", exclude={"compile", "depth", "heads"})  # these two are timm's
        return {**settings, "code": source_digest(type(self))}

    def arithmetic(self, precision: str) -> str:
        """What the fingerprint says of a precision: also how it is reached, where that changes the numbers."""
        return precision

    @abstractmethod
    def decode(self, raw: Raw) -> Decoded:
        """Read one raw row into the form `encode` reads. Raises RowError with a reason a person understands."""

    @abstractmethod
    def load(self, *, device: str = "cpu", precision: str = "float32") -> None:
        """Load the weights onto a device; `precision` is the arithmetic of the forward pass."""

    @abstractmethod
    def encode(self, rows: Sequence[Decoded]) -> Embeddings | TokenSequences:
        """Encode B decoded rows in their order: (B, D) float32, or B arrays (T_b, D) where `yields_tokens`."""

    def cost(self, row: Decoded) -> int:
        """Relative cost of a decoded row, its length say; rows of like cost are batched together."""
        return 1

    def encode_all(self, rows: Sequence[Decoded], batch_size: int) -> Any:
        """N decoded rows in their order: (N, D) float32, or N arrays (T, D) without padding where `yields_tokens`.

        Rows of like cost share a batch. It holds as many as `batch_size` rows of `unit_cost` pay for once they are
        padded to its costliest: long rows get smaller batches, short ones larger. A batch that does not fit on the GPU
        is halved. Raises ValueError where `encode` does not give what `dim` and `yields_tokens` promise.
        """
        results: list[npt.NDArray[np.float32]] = [np.empty(0, np.float32)] * len(rows)
        costs = [self.cost(row) for row in rows]
        for batch in plan_batches(
            costs, batch_size=batch_size, unit_cost=self.unit_cost, equal_cost=not self.pads_rows
        ):
            for index, row in zip(batch, self._encode_or_halve([rows[index] for index in batch]), strict=True):
                results[index] = row
        return results if self.yields_tokens else np.array(results, np.float32).reshape(len(rows), self.dim)

    def _encode_or_halve(self, rows: Sequence[Decoded]) -> Sequence[npt.NDArray[np.float32]]:
        try:
            encoded = self.encode(rows)
        except RuntimeError as error:
            import torch  # by now it is loaded; an encoder that runs without it should not wait for it

            if not isinstance(error, torch.OutOfMemoryError):
                raise
            if len(rows) == 1:
                raise InputError(
                    f"one row of encoders.{self.modality} '{self.config.name}' does not fit into the GPU's memory; "
                    "set embed.precision=bfloat16, shorten rows (max_length, max_seconds), or take a smaller model"
                ) from None
        else:
            self._check(encoded, len(rows))
            return list(encoded)
        # Outside the except block: the exception's traceback would keep the failed batch's tensors alive.
        torch.cuda.empty_cache()
        middle = len(rows) // 2
        return [*self._encode_or_halve(rows[:middle]), *self._encode_or_halve(rows[middle:])]

    def _check(self, encoded: Embeddings | TokenSequences, num_rows: int) -> None:
        promised = "a list of (tokens, dim) arrays" if self.yields_tokens else "one (rows, dim) array"
        if isinstance(encoded, list) != self.yields_tokens:
            raise ValueError(f"{type(self).__name__}.encode gave a {type(encoded).__name__}; expected {promised}")
        widths = {tokens.shape[1:] for tokens in encoded} if isinstance(encoded, list) else {encoded.shape[1:]}
        if len(encoded) != num_rows or widths - {(self.dim,)}:
            raise ValueError(
                f"{type(self).__name__}.encode gave {len(encoded)} rows of shape {sorted(widths)} "
                f"for {num_rows} rows of dim {self.dim}"
            )


def plan_batches(
    costs: Sequence[int], *, batch_size: int, unit_cost: int | None = None, equal_cost: bool = False
) -> list[list[int]]:
    """Batches of row indices, costliest first; each row is in exactly one.

    Args:
        costs: of each of N rows, its length say.
        batch_size: rows in a batch; with `unit_cost`, the padded cost of a batch is at most batch_size * unit_cost.
        unit_cost: what one row of `batch_size` pays for. A batch of costlier rows holds fewer, down to one.
        equal_cost: put only rows of the same cost together.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        costliest = costs[batches[-1][0]] if batches else 0  # the first of its batch: all others are padded to it
        room = batch_size if unit_cost is None else max(1, batch_size * unit_cost // max(1, costliest))
        if not batches or len(batches[-1]) == room or (equal_cost and costs[index] != costliest):
            batches.append([])
        batches[-1].append(index)
    return batches


def fingerprint(encoder: Encoder, *, dtype: str, precision: str) -> str:
    """The store folder's name for an encoder: a hash of identity, storage dtype and arithmetic precision."""
    arithmetic = encoder.arithmetic(precision)
    return hash_of({**encoder.identity(), "dim": encoder.dim, "dtype": dtype, "precision": arithmetic})
