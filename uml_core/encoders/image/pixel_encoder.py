"""What encoders of pictures share, whichever library has the model: uint8 pictures of one size become pixels.

Shape legend: B batch, H height, W width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from uml_core.corpora.content import Raw
from uml_core.encoders.base import Decoded, Embeddings, TokenSequences
from uml_core.encoders.lazy import Lazy
from uml_core.encoders.openvino_engine import OpenVinoForward, engine_forward
from uml_core.encoders.torch_encoder import Arrays, TrainableEncoder, for_device, to_numpy

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = Lazy("torch")

ENGINE_BATCH_SIZE = 4  # in OpenVINO: a picture's activations stay in the caches, a tenth faster than 8


class PixelEncoder(TrainableEncoder):
    """An encoder of pictures, which are normalised on the device."""

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
        """B pictures (H, W, 3) as bytes (B, 3, H, W) on a device."""
        return for_device(array_B, device).permute(0, 3, 1, 2).to(device, non_blocking=True)

    def example(self) -> Arrays:
        return np.zeros((*self.picture_size, 3), dtype=np.uint8)

    @property
    def _graph_names(self) -> dict[str, Any]:
        """How OpenVINO's graph names inputs and output, where the module is called by names."""
        return {}

    def _engine(self, module: nn.Module, precision: str) -> Callable[..., Any] | None:
        # Noise stands in for normalised pixels: two pictures to trace with, three to check with.
        traced, checked = (
            [torch.randn(count, 3, *self.picture_size, generator=torch.Generator().manual_seed(count))]
            for count in (2, 3)
        )
        options = {"precision": precision, "keep": self._keep, **self._graph_names}
        engine = engine_forward(module, traced, checked, free=(0,), **options)
        if engine is not None:
            self._runs_on_engine()
        return engine

    def _runs_on_engine(self) -> None:
        self.cpu_batch_size = ENGINE_BATCH_SIZE

    def expect_inputs_on(self, device: str) -> None:
        super().expect_inputs_on(device)
        mean, std = self._mean_and_std
        self._mean = torch.tensor(mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(std, device=device).view(1, 3, 1, 1)

    @abstractmethod
    def _tokens(self, pixels_B3HW: Tensor) -> Tensor:
        """Patch tokens (B, T, D) of normalised pixels, without the prefix (CLS, registers)."""

    def encode(self, rows: Sequence[Decoded]) -> Embeddings | TokenSequences:
        """Encode B pictures (H, W, 3) into (B, D), or into B arrays of patch tokens (T, D)."""
        if self._encodes_arrays and isinstance(self._model, OpenVinoForward):
            return self._model.arrays([self._pixel_array(rows)])
        with torch.inference_mode():
            pixels_B3HW = self._pixels(rows)
            if self.yields_tokens:
                return list(to_numpy(self._tokens(pixels_B3HW)))
            return to_numpy(self.features(pixels_B3HW))

    def _pixel_array(self, rows: Sequence[Decoded]) -> Arrays:
        """What `_pixels` gives, without torch: float32 (B, 3, H, W), to the bit."""
        mean, std = (np.asarray(values, np.float32).reshape(3, 1, 1) for values in self._mean_and_std)
        pixels_B3HW = np.stack([np.asarray(row) for row in rows]).transpose(0, 3, 1, 2)
        pixels_B3HW = np.ascontiguousarray(pixels_B3HW, dtype=np.float32)
        pixels_B3HW -= mean
        pixels_B3HW /= std
        return pixels_B3HW

    def _pixels(self, rows: Sequence[Decoded]) -> Tensor:
        """B pictures (H, W, 3) as normalised (B, 3, H, W), channels last, in the precision of the model."""
        assert self._model is not None, "load() comes before encode()"
        # (B, H, W, 3) permuted to (B, 3, H, W) is channels-last already: no copy. Bytes travel to the device, not
        # floats; the arithmetic is in place.
        picture_B3HW = torch.from_numpy(np.stack([np.asarray(row) for row in rows])).permute(0, 3, 1, 2)
        return self.normalised(picture_B3HW.to(self._device).to(torch.float32))

    def normalised(self, pixels_B3HW: Tensor) -> Tensor:
        """Pixels on the scale 0 to 255 (overwritten) as the model reads them, in its precision."""
        return pixels_B3HW.sub_(self._mean).div_(self._std).to(self._dtype)
