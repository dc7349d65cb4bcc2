"""The one table from (modality, source, name) to an encoder; `source: module` leads to a user's own."""

from __future__ import annotations

import ctypes
import importlib
from pathlib import Path

from uml_core.config import EncoderConfig, Experiment
from uml_core.encoders.base import Encoder
from uml_core.errors import InputError, listing, nearest
from uml_core.plugins import imported_callable

# (modality, source) -> {name: "module:class"}; the name "*" takes any name the library knows.
ENCODERS: dict[tuple[str, str], dict[str, str]] = {
    ("image", "package"): {"efficientnet_lite0": "uml_core.encoders.image.timm_encoder:PackagedEfficientNet"},
    ("image", "timm"): {"*": "uml_core.encoders.image.timm_encoder:TimmEncoder"},
    ("image", "transformers"): {"*": "uml_core.encoders.image.transformers_image:TransformersImageEncoder"},
    ("text", "package"): {
        "minilm_l6": "uml_core.encoders.text.sentence_encoders:PackagedMiniLM",
        "bytes": "uml_core.encoders.text.byte_tokens:ByteTokens",
    },
    ("text", "transformers"): {"*": "uml_core.encoders.text.sentence_encoders:TransformersTextEncoder"},
    ("audio", "package"): {
        "logmel": "uml_core.encoders.audio.packaged_audio:LogMelStatistics",
        "moonshine_tiny": "uml_core.encoders.audio.packaged_audio:MoonshineEncoder",
    },
    ("audio", "transformers"): {"*": "uml_core.encoders.audio.transformers_audio:transformers_audio_encoder"},
}


def build_encoder(config: EncoderConfig, modality: str) -> Encoder:
    """Build the encoder an experiment names, without loading weights.

    Raises:
        InputError: no encoder of that source or name exists for the modality, or a user's own cannot be built.
    """
    if config.source == "module":
        return _own_encoder(config, modality)
    sources = [*sorted(source for known, source in ENCODERS if known == modality), "module"]
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


def _own_encoder(config: EncoderConfig, modality: str) -> Encoder:
    """Build the user's own encoder by its `package.module:factory`; a subclass of Encoder is a factory too."""
    setting = f"encoders.{modality}.name is '{config.name}'"
    factory = imported_callable(
        config.name,
        setting=setting,
        kind="source module needs package.module:factory, for example my_encoders:MyEncoder",
    )
    encoder = factory(config)
    if not isinstance(encoder, Encoder):
        raise InputError(f"{setting}, which returns {encoder!r:.60}; expected an instance of uml_core.encoders.Encoder")
    if encoder.modality != modality:
        raise InputError(f"{setting}, an encoder of modality {encoder.modality}; the corpus is of {modality}")
    return encoder


def store_precision(experiment: Experiment) -> str:
    """The arithmetic in which this machine embeds an experiment's corpora, and every later input alike.

    For "auto" bfloat16 on a GPU that has it, else float32.
    """
    given = experiment.embed.precision
    if given != "auto":
        return given
    return "bfloat16" if _may_have_gpu() and _has_bfloat16_gpu() else "float32"


def _may_have_gpu() -> bool:
    """False where there is no driver of a GPU, which is known at once; torch takes seconds."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Path("/dev/kfd").exists()  # AMD's
    return True


def _has_bfloat16_gpu() -> bool:
    import torch

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
