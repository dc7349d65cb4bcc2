"""Image, text and audio encoders behind one small protocol (`base.Encoder`) and one registry (`build_encoder`)."""

from uml_core.encoders.base import Decoded, Embeddings, Encoder, TokenSequences, fingerprint
from uml_core.encoders.registry import build_encoder, store_precision
from uml_core.errors import RowError

__all__ = [
    "Decoded",
    "Embeddings",
    "Encoder",
    "RowError",
    "TokenSequences",
    "build_encoder",
    "fingerprint",
    "store_precision",
]
