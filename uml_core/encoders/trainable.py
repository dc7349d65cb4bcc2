"""What training asks of a target's encoder: rows as arrays of one shape, and from a batch of them to features.

In: raw rows, by `array_of` on any CPU. Out: features (B, D) of `on_device(arrays)`, with gradients where the module has
them. Right after `load_trainable` they are the embeddings of the frozen encoder, to rounding.

Shape legend: B batch, D embedding width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy.typing as npt
import torch
from torch import Tensor

from uml_core.corpora.content import Raw
from uml_core.encoders.base import TorchEncoder

Arrays = npt.NDArray[Any]  # uint8 pictures (B, H, W, 3), or float32 clips as their encoder packs them


class TrainableEncoder(TorchEncoder):
    """An encoder of pictures or sounds whose module can be trained."""

    noun: ClassVar[str]  # what a row is, in messages
    takes_crops: ClassVar[bool] = False  # whether its batches are pixels (B, 3, H, W), which may be cropped and flipped
    eval_rows: ClassVar[int] = 64  # encoded at once in an evaluation

    @abstractmethod
    def array_of(self, raw: Raw) -> Arrays:
        """Decode one row to an array whose shape is that of every other row. Raises RowError as `decode` does."""

    @abstractmethod
    def on_device(self, array_B: Arrays, device: torch.device) -> Tensor:
        """Return B arrays as a batch on a device, with no arithmetic done."""

    def normalised(self, batch: Tensor) -> Tensor:
        """Return a float32 batch (overwritten) as `features` takes it."""
        return batch

    @abstractmethod
    def features(self, batch: Tensor) -> Tensor:
        """Return the pooled features (B, D) of a normalised batch, with gradients where the module has them."""

    @abstractmethod
    def example(self) -> Arrays:
        """Return the array of a row made up here, to see which layers encoding calls."""

    def block_depths(self) -> dict[str, int] | None:
        """Return the block of every parameter by name: 0 before the first, -1 never trained; None: by the module."""
        return None

    @abstractmethod
    def _empty_model(self) -> torch.nn.Module:
        """Return the module with random weights, on the CPU: what a fine-tuned run's weights are put into."""

    def load_random(self, seed: int, *, device: str = "cpu") -> None:
        """Take random weights for training, as the module draws them, by a seed."""
        self._place(self._random_model(seed), device, "float32")

    def _random_model(self, seed: int) -> torch.nn.Module:
        with torch.random.fork_rng(devices=[]):  # torch's own random state stays as it was
            torch.manual_seed(seed)
            return self._empty_model()

    def load_weights(self, weights: Mapping[str, Tensor], *, device: str = "cpu", precision: str = "float32") -> None:
        """Take fine-tuned weights instead of those the settings name."""
        module = self._empty_model()
        module.load_state_dict(weights)
        self._place_frozen(module, device, precision)
