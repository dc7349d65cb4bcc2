"""Image, text and audio encoders behind one small protocol (`base.Encoder`) and one registry (`build_encoder`)."""

from uml_core.corpora.content import Raw
from uml_core.encoders.base import (
    Clip,
    Decoded,
    Embeddings,
    Encoder,
    TokenSequences,
    fingerprint,
)
from uml_core.encoders.registry import build_encoder, resolve_precision, store_precision
from uml_core.errors import RowError

__all__ = [
    "Clip",
    "Decoded",
    "Embeddings",
    "Encoder",
    "Raw",
    "RowError",
    "TokenSequences",
    "build_encoder",
    "fingerprint",
    "resolve_precision",
    "store_precision",
]
