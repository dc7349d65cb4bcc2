"""Hugging Face vision models (ViT, DINOv2, CLIP, ConvNeXt, ...) with the preprocessing of their own image processor.

Pictures are resized and cropped to uint8 by the processor in `decode`; its mean and std are applied in `encode`.

Shape legend: B batch, H height, W width, T tokens, D embedding width.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor

from uml_core.config import EncoderConfig
from uml_core.corpora.content import Raw
from uml_core.encoders.base import Decoded
from uml_core.encoders.image.pixel_encoder import PixelEncoder
from uml_core.encoders.pictures import open_picture
from uml_core.encoders.transformers_models import HubEncoder
from uml_core.encoders.weights import from_hub_once
from uml_core.errors import InputError, RowError

PREPROCESSING = ("size", "crop_size", "resample", "do_resize", "do_center_crop", "image_mean", "image_std", "crop_pct")


class TransformersImageEncoder(HubEncoder, PixelEncoder):
    """A Hugging Face vision model by hub name or local directory.

    `pooling: auto` is the CLS token of transformers, the model's own pooled output of convolutional models and Swin,
    and the projection at unit length of CLIP and SigLIP; `mean` averages the patch tokens; `tokens` gives them all,
    without CLS and registers (of convolutional models, the cells of the last feature map, row by row).
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        if config.image_size is not None:
            raise InputError(
                f"encoders.image.image_size is {config.image_size}; source transformers uses the size of the model's "
                "own image processor: leave it out, or use source timm"
            )

    @property
    def poolings(self) -> tuple[str, ...]:
        return ("cls", "mean", "tokens") if self._kind.prefix_tokens else ("mean", "tokens")

    @property
    def _shared(self) -> str:
        """The output in the space that is shared with text."""
        return "image_embeds" if self._kind.loader.startswith("CLIP") else "pooler_output"

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "preprocessing": self.preprocessing}

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The settings of the model's image processor."""
        settings = self._processor.to_dict()
        return {key: settings[key] for key in PREPROCESSING if settings.get(key) is not None}

    def decode(self, raw: Raw) -> Decoded:
        """Open, turn upright, put transparency on white; resize and crop as the processor says: uint8 (H, W, 3)."""
        assert isinstance(raw, bytes)
        picture, processor = open_picture(raw), self._processor
        try:
            batch = processor(picture, do_rescale=False, do_normalize=False, return_tensors="np")
        except ValueError as error:
            raise RowError(f"picture of {picture.width} x {picture.height} pixels cannot be resized: {error}") from None
        pixels_3HW = np.asarray(batch["pixel_values"][0])
        return np.ascontiguousarray(pixels_3HW.transpose(1, 2, 0), dtype=np.uint8)

    def _tokens(self, pixels_B3HW: Tensor) -> Tensor:
        return self._patches(self._model(pixel_values=pixels_B3HW).last_hidden_state)

    def features(self, pixels_B3HW: Tensor) -> Tensor:
        pooling = self.pooling
        output = self._model(pixel_values=pixels_B3HW)
        features: Tensor
        if pooling == "projection":
            features = torch.nn.functional.normalize(getattr(output, self._shared).float(), dim=-1)
        elif pooling == "pooled":
            features = output.pooler_output.flatten(1)
        elif pooling == "cls":
            features = output.last_hidden_state[:, 0]
        else:
            features = self._patches(output.last_hidden_state).float().mean(dim=1)
        return features

    @property
    def _graph_names(self) -> dict[str, Any]:
        outputs = {"pooled": "pooler_output", "projection": self._shared}
        return {"inputs": ("pixel_values",), "output": outputs.get(self.pooling, "last_hidden_state")}

    @property
    def picture_size(self) -> tuple[int, int]:
        """As the model's image processor makes a square picture."""
        blank = io.BytesIO()
        Image.new("RGB", (256, 256)).save(blank, "png")
        height, width = np.asarray(self.decode(blank.getvalue())).shape[:2]
        return height, width

    def _patches(self, hidden: Tensor) -> Tensor:
        if hidden.ndim == 4:  # convolutional models: (B, D, H, W)
            return hidden.flatten(2).transpose(1, 2)
        registers = int(getattr(self._hub_config, "num_register_tokens", 0))
        return hidden[:, self._kind.prefix_tokens + registers :]

    @property
    def _mean_and_std(self) -> tuple[Any, Any]:
        """The processor's (x · rescale_factor − mean) / std as (x − m) / s on the scale of x."""
        processor = self._processor
        normalised = bool(processor.do_normalize)
        factor = float(processor.rescale_factor) if processor.do_rescale else 1.0
        mean = np.array(processor.image_mean if normalised else (0, 0, 0), dtype=np.float32)
        std = np.array(processor.image_std if normalised else (1, 1, 1), dtype=np.float32)
        return mean / np.float32(factor), std / np.float32(factor)

    @property
    def _processor(self) -> Any:
        # Its PIL backend: what the models were evaluated with, and it runs in a decode task on a CPU.
        return from_hub_once(AutoImageProcessor, self.location, setting="encoders.image", backend="pil")
