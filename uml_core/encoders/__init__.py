"""Image, text and audio encoders behind one small protocol (`base.Encoder`) and one registry (`build_encoder`)."""

from uml_core.encoders.base import Decoded, Encoder, Raw, RowError, fingerprint
from uml_core.encoders.registry import build_encoder, resolve_precision

__all__ = ["Decoded", "Encoder", "Raw", "RowError", "build_encoder", "fingerprint", "resolve_precision"]
