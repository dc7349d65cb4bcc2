"""What encoders of pictures share, whichever library has the model: uint8 pictures of one size become pixels.

Shape legend: B batch, H height, W width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from uml_core.corpora.content import Raw
from uml_core.encoders.base import Decoded
from uml_core.encoders.torch_encoder import Arrays, TrainableEncoder

ENGINE_BATCH_SIZE = 4  # in OpenVINO: a picture's activations stay in the caches, a tenth faster than 8


class PixelEncoder(TrainableEncoder):
    """An encoder of pictures: normalises on the device, in place."""

    modality = "image"
    noun = "picture"
    takes_crops = True
    cpu_batch_size = 8

    @property
    @abstractmethod
    def _mean_and_std(self) -> tuple[Any, Any]:
        """Mean and standard deviation of each channel, on the scale 0 to 255."""

    @property
    @abstractmethod
    def preprocessing(self) -> dict[str, Any]:
        """How a picture is resized, cropped and normalised, as JSON values."""

    @property
    @abstractmethod
    def picture_size(self) -> tuple[int, int]:
        """Height and width of a decoded picture."""

    def array_of(self, raw: Raw) -> Arrays:
        """Decode one picture: uint8 (H, W, 3)."""
        return np.asarray(self.decode(raw), dtype=np.uint8)

    def on_device(self, array_B: Arrays, device: torch.device) -> Tensor:
        """Return B pictures (H, W, 3) as bytes (B, 3, H, W) on a device."""
        return torch.from_numpy(array_B).permute(0, 3, 1, 2).to(device)

    def example(self) -> Arrays:
        """Return a blank picture of the encoder's size."""
        return np.zeros((*self.picture_size, 3), dtype=np.uint8)

    def _noise(self, count: int) -> Tensor:
        """Return normalised pixels (B, 3, H, W) to trace or check a module with."""
        return torch.randn(count, 3, *self.picture_size, generator=torch.Generator().manual_seed(count))

    def _in_small_batches(self, engine: Callable[..., Any] | None) -> Callable[..., Any] | None:
        if engine is not None:
            self.cpu_batch_size = ENGINE_BATCH_SIZE
        return engine

    def expect_inputs_on(self, device: str) -> None:
        """Read pixels from a device that the module has been moved to."""
        super().expect_inputs_on(device)
        mean, std = self._mean_and_std
        self._mean = torch.tensor(mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(std, device=device).view(1, 3, 1, 1)

    def _pixels(self, rows: Sequence[Decoded]) -> Tensor:
        """Return B pictures (H, W, 3) as normalised (B, 3, H, W), channels last, in the precision of the model."""
        assert self._model is not None, "load() comes before encode()"
        # (B, H, W, 3) permuted to (B, 3, H, W) is channels-last already: no copy. Bytes travel to the device, not
        # floats; the arithmetic is in place.
        picture_B3HW = torch.from_numpy(np.stack([np.asarray(row) for row in rows])).permute(0, 3, 1, 2)
        return self.normalised(picture_B3HW.to(self._device).to(torch.float32))

    def normalised(self, pixels_B3HW: Tensor) -> Tensor:
        """Return pixels on the scale 0 to 255 (overwritten) as the model reads them, in its precision."""
        return pixels_B3HW.sub_(self._mean).div_(self._std).to(self._dtype)
