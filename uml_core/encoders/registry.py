"""The one table from (modality, source, name) to an encoder class."""

from __future__ import annotations

import importlib

import torch

from uml_core.config import EncoderConfig
from uml_core.encoders.base import Encoder
from uml_core.errors import InputError, listing, nearest

# (modality, source) -> {name: "module:class"}; the name "*" takes any name the library knows.
ENCODERS: dict[tuple[str, str], dict[str, str]] = {
    ("image", "package"): {"efficientnet_lite0": "uml_core.encoders.image:PackagedEfficientNet"},
    ("image", "timm"): {"*": "uml_core.encoders.image:TimmEncoder"},
    ("text", "package"): {"minilm_l6": "uml_core.encoders.text:PackagedMiniLM"},
    ("text", "transformers"): {"*": "uml_core.encoders.text:TransformersTextEncoder"},
    ("audio", "package"): {
        "logmel": "uml_core.encoders.audio:LogMelStatistics",
        "moonshine_tiny": "uml_core.encoders.audio:MoonshineEncoder",
    },
}


def build_encoder(config: EncoderConfig, modality: str) -> Encoder:
    """Return the encoder an experiment names, without loading weights.

    Raises:
        InputError: no encoder of that source or name exists for the modality.
    """
    sources = sorted(source for known, source in ENCODERS if known == modality)
    names = ENCODERS.get((modality, config.source))
    if names is None:
        raise InputError(
            f"encoders.{modality}.source is '{config.source}'; sources for {modality} are {listing(sources)}"
        )
    path = names.get(config.name, names.get("*"))
    if path is None:
        raise InputError(
            f"encoders.{modality}.name is '{config.name}'; source {config.source} has "
            f"{listing(sorted(names))}{nearest(config.name, names)}"
        )
    module, _, attribute = path.partition(":")
    encoder: Encoder = getattr(importlib.import_module(module), attribute)(config)
    return encoder


def resolve_precision(precision: str, device: str) -> str:
    """Return float32 or bfloat16 for "auto": bfloat16 on a CUDA device that has it, float32 elsewhere."""
    if precision != "auto":
        return precision
    return "bfloat16" if device.startswith("cuda") and torch.cuda.is_bf16_supported() else "float32"
