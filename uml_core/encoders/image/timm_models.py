"""timm's modules without their classifier: built by the settings, filled from a file, or giving tokens.

Shape legend: B batch, H height, W width.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from uml_core.config import EncoderConfig
from uml_core.encoders.image.lean_timm import NoInitialValues, timm
from uml_core.encoders.weights import UNREADABLE, first_line
from uml_core.errors import InputError

POOLINGS = {"auto": None, "tokens": None, "cls": "token", "mean": "avg"}  # timm's names; None: the model's own


class Features(torch.nn.Module):
    """A timm model that gives its tokens, or its last feature map."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._model = model

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        features: Tensor = self._model.forward_features(pixels_B3HW)
        return features


def create_timm_model(timm_name: str, config: EncoderConfig, *, pretrained: bool) -> Any:
    """Build a timm model without its classifier. Raises InputError for a size or pooling it does not have."""
    if config.pooling not in POOLINGS:
        raise InputError(
            f"encoders.image.pooling is '{config.pooling}'; image encoders have auto, cls, mean and tokens"
        )
    options: dict[str, Any] = {"num_classes": 0, **resized(config)}
    if config.image_size is not None:
        options["img_size"] = config.image_size
    if POOLINGS[config.pooling] is not None:
        options["global_pool"] = POOLINGS[config.pooling]
    try:
        return timm.create_model(timm_name, pretrained=pretrained, **options)
    except (TypeError, AssertionError) as error:
        sizes = "".join(f", {name}={value}" for name, value in resized(config).items())
        raise InputError(
            f"encoders.image '{config.name}' does not take pooling={config.pooling}, "
            f"image_size={config.image_size}{sizes}: {first_line(error)}"
        ) from None


def resized(config: EncoderConfig) -> dict[str, int]:
    """Return the sizes of a ViT that are not its own, under timm's names."""
    return {name: value for name, value in (("depth", config.depth), ("num_heads", config.heads)) if value is not None}


def load_checkpoint(model: torch.nn.Module, file: Path, *, name: str) -> None:
    """Fill a timm model from a file. Raises InputError if any weight is missing: it would stay random."""
    try:
        missing = timm.models.load_checkpoint(model, str(file), strict=False).missing_keys
    except UNREADABLE as error:
        raise InputError(
            f"encoders.image.weights {file} does not hold weights of timm model '{name}': {first_line(error)}"
        ) from None
    if missing:
        raise InputError(
            f"encoders.image.weights {file} lacks {len(missing)} weights of timm model '{name}', first {missing[0]}; "
            "give the weights of this very model"
        )


@functools.lru_cache(maxsize=32)
def skeleton_of(timm_name: str, config: EncoderConfig) -> Any:
    """Return a timm model without memory for its weights."""
    # Built once a process: it takes a tenth of a second, and every decode task asks for it.
    with torch.device("meta"), NoInitialValues():
        return create_timm_model(timm_name, config, pretrained=False)
