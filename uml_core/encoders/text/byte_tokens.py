"""Text without any pretrained encoder: the bytes of its UTF-8 form as discrete tokens, for objective self_supervised.

In: a sentence. Out: whole numbers below 256, one token a byte, cut to `max_length`.

Shape legend: T tokens of a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from uml_core.config import EncoderConfig
from uml_core.corpora.content import Raw
from uml_core.encoders.base import Decoded, Encoder, TokenSequences
from uml_core.errors import InputError, RowError


class ByteTokens(Encoder):
    """Every byte is a token, in every language; nothing is learnt beforehand, and there are no weights."""

    modality = "text"

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        if config.pooling != "tokens":
            raise InputError(f"encoders.text.pooling is '{config.pooling}'; bytes has tokens only (pooling: tokens)")

    @property
    def dim(self) -> int:
        return 1  # a token is one number

    @property
    def vocabulary(self) -> int:
        return 256

    def identity(self) -> dict[str, Any]:
        return {"source": self.config.source, "name": self.config.name, "max_length": self.config.max_length}

    def decode(self, raw: Raw) -> Decoded:
        text = raw.strip() if isinstance(raw, str) else raw.decode("utf-8", "replace").strip()
        if not text:
            raise RowError("empty text")
        return np.frombuffer(text.encode()[: self.config.max_length], dtype=np.uint8)

    def load(self, *, device: str = "cpu", precision: str = "float32") -> None:
        """Nothing to load."""

    def encode(self, rows: Sequence[Decoded]) -> TokenSequences:
        return [np.asarray(row, dtype=np.float32)[:, None] for row in rows]
