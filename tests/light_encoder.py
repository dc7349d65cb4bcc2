"""A user's own encoders without weights, for tests of how rows flow through `embed`, not of vectors.

In the experiment: `encoders.image: {source: module, name: "tests.light_encoder:ColourGrid"}`. A worker that has it
imports neither timm nor transformers: half of what an actor's start costs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from uml_core.corpora.content import Raw
from uml_core.encoders import Decoded, Embeddings, Encoder
from uml_core.encoders.pictures import open_picture

GRID = 4
SLOW_ROW_S = 0.15


class ColourGrid(Encoder):
    """The mean colours of a picture's GRID x GRID cells, in [0, 1]."""

    modality = "image"
    dim = 3 * GRID * GRID

    def decode(self, raw: Raw) -> Decoded:
        """The cells' mean colours: uint8 (GRID, GRID, 3)."""
        assert isinstance(raw, bytes)
        return np.asarray(open_picture(raw).resize((GRID, GRID), Image.Resampling.BOX))

    def load(self, *, device: str = "cpu", precision: str = "float32") -> None:
        """Nothing: there are no weights."""

    def encode(self, rows: Sequence[Decoded]) -> Embeddings:
        """Encode B pictures into (B, D)."""
        return np.stack([np.asarray(row).ravel() for row in rows]).astype(np.float32) / np.float32(255)


class WordCounts(Encoder):
    """How often words of each length, up to GRID letters and more, are in a sentence."""

    modality = "text"
    dim = GRID

    def decode(self, raw: Raw) -> Decoded:
        """Lengths of the words: int64 (words,)."""
        assert isinstance(raw, str)
        return np.array([min(len(word), GRID) - 1 for word in raw.split()])

    def load(self, *, device: str = "cpu", precision: str = "float32") -> None:
        """Nothing: there are no weights."""

    def encode(self, rows: Sequence[Decoded]) -> Embeddings:
        """Encode B sentences into (B, D)."""
        return np.stack([np.bincount(np.asarray(row), minlength=GRID) for row in rows]).astype(np.float32)


class SlowColourGrid(ColourGrid):
    """The same after a pause for each row, so that a test can kill what encodes it: a pause takes no CPU."""

    def encode(self, rows: Sequence[Decoded]) -> Embeddings:
        """Encode B pictures into (B, D)."""
        time.sleep(SLOW_ROW_S * len(rows))
        return super().encode(rows)


def light(tree: dict[str, Any], encoder: type[ColourGrid] = ColourGrid) -> dict[str, Any]:
    """An experiment file's tree whose pictures a light encoder embeds."""
    image = {"source": "module", "name": f"{encoder.__module__}:{encoder.__qualname__}"}
    return {**tree, "encoders": {**tree.get("encoders", {}), "image": image}}
