"""A convolutional module's forward pass run by ONNX Runtime: on a CPU, up to twice as fast as torch, the same features.

In: a torch module in evaluation mode, in float32, on the CPU. Out: a callable of the same (B, 3, H, W) to the same
output, up to rounding. The gain is in convolutions, whose weights and activations it lays out for the CPU's vectors;
transformers run no faster (RESULTS.md), so they are left to torch.

Shape legend: B batch, H height, W width.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as state
from torch import Tensor, nn
from torch.jit import TracerWarning  # type: ignore[attr-defined]

logger = logging.getLogger(__name__)

OPSET = 17
EXAMPLES, CHECKED = 2, 3  # pictures to trace with, and another number to check with: the batch must not be frozen in
TOLERANCE = 1e-3  # of the largest feature; measured: 1e-5
# What exporting and running raise of a graph that one of the two does not know.
UNKNOWN = (
    *(RuntimeError, TypeError, ValueError, AttributeError),
    *(state.Fail, state.InvalidArgument, state.InvalidGraph, state.NotImplemented, state.RuntimeException),
)


class OnnxForward:
    """A session of ONNX Runtime that is called like the module it was made from."""

    def __init__(self, file: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors only
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def __call__(self, pixels_B3HW: Tensor) -> Tensor:
        """Return what the module returns for float32 pixels of any layout."""
        (output,) = self._session.run(["output"], {"pixels": pixels_B3HW.contiguous().numpy()})
        return torch.from_numpy(output)


def is_convolutional(module: nn.Module) -> bool:
    """Return whether a module has more convolutions than the one that makes a transformer's patches."""
    return sum(isinstance(part, nn.Conv2d) for part in module.modules()) > 1


def onnx_forward(module: nn.Module, size: tuple[int, int]) -> Callable[[Tensor], Tensor] | None:
    """Return the module's forward pass in ONNX Runtime on as many threads as torch may use, or None.

    None where the module cannot be exported, or where its exported graph gives other features: torch runs it then.

    Args:
        module: in evaluation mode, float32, on the CPU, contiguous.
        size: height and width of the pixels.
    """
    generator = torch.Generator().manual_seed(0)
    pixels_B3HW = torch.randn(CHECKED, 3, *size, generator=generator)
    try:
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / "module.onnx"
            _export(module, pixels_B3HW[:EXAMPLES], file)
            forward = OnnxForward(file)
        # As `encode` runs it. A module that gives several outputs, say, fails here.
        with torch.inference_mode():
            expected = module(pixels_B3HW)
        error = (forward(pixels_B3HW) - expected).abs().max() / expected.abs().max()
    except UNKNOWN as problem:
        logger.info("%s is not run by ONNX Runtime: %s", type(module).__name__, problem)
        return None
    if not error <= TOLERANCE:
        logger.info("%s is not run by ONNX Runtime: its features are off by %g", type(module).__name__, float(error))
        return None
    return forward


def _export(module: nn.Module, pixels_B3HW: Tensor, file: Path) -> None:
    with warnings.catch_warnings():
        # The exporter that traces is announced to go; the newer one needs two more packages.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", TracerWarning)  # sizes are fixed on purpose: all pictures have one
        torch.onnx.export(
            module,
            (pixels_B3HW,),
            file,
            input_names=["pixels"],
            output_names=["output"],
            dynamic_axes={"pixels": {0: "batch"}, "output": {0: "batch"}},
            opset_version=OPSET,
            dynamo=False,
        )
