"""Encoders that run a torch module: frozen, on torch or OpenVINO, or handed over to be trained.

Training reads rows as arrays of one shape, by `array_of` on any CPU, and asks for the features (B, D) of
`on_device(arrays)`, with gradients where the module has them. Right after `load_trainable` these are the embeddings of
the frozen encoder, to rounding.

Shape legend: B batch, D embedding width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy.typing as npt

from uml_core.config import EncoderConfig
from uml_core.corpora.content import Raw
from uml_core.encoders import openvino_engine
from uml_core.encoders.base import Embeddings, Encoder
from uml_core.encoders.kept_graphs import kept_graph, one_maker
from uml_core.encoders.lazy import Lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = Lazy("torch")

Arrays = npt.NDArray[Any]  # uint8 pictures (B, H, W, 3), or float32 clips as their encoder packs them


class TorchEncoder(Encoder):
    """An encoder that runs a torch module: device, arithmetic and compilation in one place."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        self._device: str = "cpu"
        self._dtype: Any = None  # of the arithmetic, once loaded
        self.module: Any = None  # with its weights, once loaded: what is trained after `load_trainable`
        self._keep: Path | None = None  # while loading, where to keep OpenVINO's graph
        self._model: Any = None  # what is called: the module, the module compiled, or OpenVINO's form of it

    @abstractmethod
    def _build_model(self, dtype: torch.dtype) -> nn.Module:
        """The module with its weights, on the CPU."""

    def expect_inputs_on(self, device: str) -> None:
        """Read inputs from a device that the module has been moved to."""
        self._device = device

    def load(self, *, device: str = "cpu", precision: str = "float32") -> None:
        """Load the weights for encoding: on a CPU into OpenVINO where it can run them, else into torch.

        With `compile: true` torch runs them, compiled at the first batch.
        """
        may_keep = device == "cpu" and not self.config.compile and self._encodes_arrays
        may_keep = may_keep and openvino_engine.runs_in(precision)
        kept = kept_graph(self.identity(), precision) if may_keep else None
        if self._load_kept(kept, precision):
            return
        with one_maker(kept) as self._keep:
            if not self._load_kept(self._keep, precision):  # made while this one waited
                self._place_frozen(self._build_model(getattr(torch, precision)), device, precision)
        self._keep = None

    def _load_kept(self, graph: Path | None, precision: str) -> bool:
        if graph is None:
            return False
        try:
            engine = openvino_engine.OpenVinoForward(graph, precision, *self._names)
        except RuntimeError:  # not there, or damaged
            return False
        self._model, self.module, self._device = engine, None, "cpu"
        self._runs_on_engine()
        return True

    @property
    def _encodes_arrays(self) -> bool:
        """Whether `encode` can do without torch where OpenVINO runs the model."""
        return False

    def _runs_on_engine(self) -> None:
        """Take note that OpenVINO runs the model."""

    _names: ClassVar[tuple[Sequence[str], str]] = ((), "output")  # what OpenVINO's graph calls inputs and output

    def load_trainable(self, *, device: str = "cpu") -> None:
        """Load the weights into the module as its authors wrote it, in float32: nothing is folded or exported."""
        self._place(self._build_model(torch.float32), device, "float32")

    def _place_frozen(self, module: nn.Module, device: str, precision: str) -> None:
        engine = None if device != "cpu" or self.config.compile else self._engine(module.eval(), precision)
        if engine is None:
            self._place(module, device, precision)
            return
        # The module's own weights are not kept: OpenVINO holds a copy.
        self._model, self.module, self._dtype = engine, None, torch.float32  # of inputs and outputs, in any precision
        self.expect_inputs_on(device)

    def _engine(self, module: nn.Module, precision: str) -> Callable[..., Any] | None:
        """What runs the module on a CPU instead of torch and is called alike; None where torch is to run it."""
        return None

    def _place(self, module: nn.Module, device: str, precision: str) -> None:
        self._dtype = getattr(torch, precision)
        self.expect_inputs_on(device)
        module = module.eval().requires_grad_(False).to(device, self._dtype)
        if self.modality == "image":
            module = module.to(memory_format=torch.channels_last)  # 4 times faster on a CPU
        self.module = module
        # dynamic: the last batch of a part is smaller and sentences differ in length; each size would compile anew.
        self._model = torch.compile(module, dynamic=True) if self.config.compile else module


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
        """B arrays as a batch on a device, with no arithmetic done."""

    def normalised(self, batch: Tensor) -> Tensor:
        """A float32 batch (overwritten) as `features` reads it."""
        return batch

    @abstractmethod
    def features(self, batch: Tensor) -> Tensor:
        """The pooled features (B, D) of a normalised batch, with gradients where the module has them."""

    @abstractmethod
    def example(self) -> Arrays:
        """The array of a row made up here, to see which layers encoding calls."""

    def block_depths(self) -> dict[str, int] | None:
        """The block of every parameter by name: 0 before the first, -1 never trained; None: by the module."""
        return None

    @abstractmethod
    def _empty_model(self) -> nn.Module:
        """The module with random weights, on the CPU: what a fine-tuned run's weights are put into."""

    def load_random(self, seed: int, *, device: str = "cpu") -> None:
        """Draw random weights for training, as the module's authors do, by a seed."""
        self._place(self._random_model(seed), device, "float32")

    def _random_model(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):  # torch's own random state stays as it was
            torch.manual_seed(seed)
            return self._empty_model()

    def load_weights(self, weights: Mapping[str, Tensor], *, device: str = "cpu", precision: str = "float32") -> None:
        """Load fine-tuned weights instead of those the settings name, for encoding."""
        module = self._empty_model()
        module.load_state_dict(weights)
        self._place_frozen(module, device, precision)


def to_numpy(encoded: Tensor) -> Embeddings:
    array: Embeddings = encoded.float().cpu().numpy()
    return array


def for_device(array_B: Arrays, device: torch.device) -> Tensor:
    """A tensor over an array's memory; for a GPU a copy in pinned memory, whose transfer holds up nobody."""
    tensor = torch.from_numpy(array_B)
    return tensor.pin_memory() if device.type == "cuda" else tensor
