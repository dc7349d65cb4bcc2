"""An encoder's forward pass run by OpenVINO: on a CPU, a fifth to twice as fast as torch, the same features.

In: a torch module in evaluation mode, in float32, on the CPU. Out: a callable of the same tensors to the same output:
in float32 up to rounding, in bfloat16 up to bfloat16's. It fuses what torch runs one by one (a convolution, its
activation, its padding), and lays weights out for the CPU's vectors once.

By way of ONNX, because openvino.convert_model of the module itself costs every process 2 to 4 times as much CPU (4.5 s
against 1.2 s for EfficientNet-lite0, 2.5 s against 1.0 s for MiniLM) for the same speed, and MiniLM's last bits differ.

Shape legend: B batch, H height, W width.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy.typing as npt

from uml_core.encoders import kept_graphs
from uml_core.encoders.lazy import Lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = Lazy("torch")

logger = logging.getLogger(__name__)

OPSET = 17  # old enough for every runtime of the last years
AXES = ("batch", "length")  # what sizes that vary are called in the graph
HINTS = {"float32": "f32", "bfloat16": "bf16"}  # OpenVINO's names of the precisions it runs in on a CPU
MAX_PARAMETERS = 300_000_000  # an exported file ends at 2 GB
TOLERANCE = 1e-3  # of the largest feature, in float32; measured: 1e-5
LEAST_COSINE = 0.998  # in bfloat16, of any row; measured on noise: .9997
# What exporting and running raise of a graph that one of the two does not know.
UNKNOWN = (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError, NotImplementedError)


class OpenVinoForward:
    """A compiled graph that is called like the module it was made from: with tensors in order, or by name."""

    def __init__(self, file: Path, precision: str, inputs: Sequence[str], output: str) -> None:
        import openvino  # not on every platform, and only where encoders run on a CPU

        settings = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "INFERENCE_NUM_THREADS": num_threads(),
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # every process would pin its threads to the same cores
        }
        self._request = openvino.Core().compile_model(str(file), "CPU", settings).create_infer_request()
        self._lock = threading.Lock()  # a request runs once at a time; a server's threads share it
        self._inputs, self._output = inputs, output

    def __call__(self, *ordered: Tensor, **named: Tensor) -> Any:
        """The output, of inputs of any memory layout, in float32; called by names, an object with it as attribute."""
        tensors = [named[name] for name in self._inputs] if named else ordered
        output = torch.from_numpy(self.arrays([tensor.contiguous().numpy() for tensor in tensors]))
        return SimpleNamespace(**{self._output: output}) if named else output

    def arrays(self, inputs: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """The same of contiguous arrays in order, without torch."""
        with self._lock:
            # Inputs are not copied; what comes back is a copy, which the next call leaves alone.
            (array,) = self._request.infer(list(inputs), share_inputs=True).values()
        return cast("npt.NDArray[Any]", array)


def _one_output(model: nn.Module, inputs: Sequence[str], output: str) -> nn.Module:
    """A Hugging Face model of tensors in order to one of its outputs, in evaluation mode."""

    class OneOutput(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._model = model

        def forward(self, *ordered: Tensor) -> Any:
            return getattr(self._model(**dict(zip(inputs, ordered, strict=True))), output)

    return OneOutput().eval()


def num_threads() -> int:
    """How many threads a process may compute on: what torch was told, or will be once it is imported."""
    if "torch" in sys.modules:
        return torch.get_num_threads()
    return int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)


def runs_in(precision: str) -> bool:
    """Whether OpenVINO is installed and this CPU computes in a precision."""
    try:
        import openvino
    except ImportError:
        return False
    capable = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return precision == "float32" or (precision == "bfloat16" and "BF16" in capable)


def engine_forward(
    module: nn.Module,
    traced: Sequence[Tensor],
    checked: Sequence[Tensor],
    *,
    free: Sequence[int],
    precision: str,
    inputs: Sequence[str] = (),
    output: str = "output",
    keep: Path | None = None,
) -> OpenVinoForward | None:
    """The module's forward pass in OpenVINO on as many threads as torch may use, or None.

    None where this CPU does not have the precision, the module cannot be exported or is too large, or its exported
    graph gives other features: torch runs it then.

    Args:
        module: in evaluation mode, on the CPU, made float32 here; of tensors to one tensor (B, ...).
        traced: inputs to trace the module with.
        checked: other inputs, of other sizes, on which both must agree: no size may be frozen in.
        free: the dimensions whose sizes vary from call to call, of every input.
        precision: float32 or bfloat16; the weights are rounded to it.
        inputs: of a module that is called by names (a Hugging Face model): the names, in the order of `traced`.
        output: of such a module, the one output that is read.
        keep: where to keep the graph for other processes.
    """
    if not runs_in(precision) or sum(weight.numel() for weight in module.parameters()) > MAX_PARAMETERS:
        return None
    name, module = type(module).__name__, module.float()
    if inputs:
        # In evaluation mode, because exporting puts the mode of the outermost module on all parts.
        module = _one_output(module, inputs, output)
    try:
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / "module.onnx"
            names = inputs or [f"input_{index}" for index in range(len(traced))]
            trace_to_onnx(module, traced, file, free=free, inputs=names, outputs=[output])
            forward = OpenVinoForward(file, precision, inputs, output)
            with torch.no_grad():  # as `encode` runs it. A module that gives several outputs, say, fails here.
                expected = module(*checked).float()
            found = forward(*checked)
            agrees = found.shape == expected.shape and _agrees(found, expected, precision)
            if agrees and keep is not None:
                kept_graphs.keep(file, keep)
    except UNKNOWN as problem:
        logger.info("%s is not run by OpenVINO: %s", name, problem)
        return None
    if not agrees:
        logger.info("%s is not run by OpenVINO: its features are off", name)
        return None
    return forward


def _agrees(found: Tensor, expected: Tensor, precision: str) -> bool:
    if precision == "float32":
        return bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max())
    cosine_B = torch.nn.functional.cosine_similarity(found.flatten(1), expected.flatten(1), dim=1)
    return bool(cosine_B.min() >= LEAST_COSINE)


def trace_to_onnx(
    module: nn.Module,
    traced: Sequence[Tensor],
    file: Path,
    *,
    free: Sequence[int],
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> None:
    """Write the graph that a module runs on some inputs, both its ends named; `free` as in `engine_forward`."""
    from torch.jit import TracerWarning  # type: ignore[attr-defined]

    sizes = {name: {axis: AXES[axis] for axis in free} for name in inputs} | {name: {0: AXES[0]} for name in outputs}
    with warnings.catch_warnings(), torch.no_grad():
        # The exporter that traces is announced to go; the newer one needs two more packages.
        warnings.simplefilter("ignore", DeprecationWarning)
        # What a trace freezes in, or exports wrongly, is found by the check.
        warnings.simplefilter("ignore", TracerWarning)
        warnings.filterwarnings("ignore", message="Exporting aten::index operator of advanced indexing")
        torch.onnx.export(
            module,
            tuple(traced),
            file,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes=sizes,
            opset_version=OPSET,
            dynamo=False,
        )
