"""timm without torch's compiler, whose import takes 1.3 s in every process that encodes, as long as torch itself.

timm and torchvision import it to ask whether it is there, and to mark functions that it is to leave alone (timm 1.0.31,
torchvision 0.29). Here they find stand-ins that ask the compiler when they are called. transformers uses more of it.

    from uml_core.encoders.image.lean_timm import timm
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

FILLING = ("normal_", "uniform_", "erfinv_", "clamp_")  # tensor methods with which weights are drawn
COMPILER = ("torch._dynamo", "torch._dynamo.utils")


@contextlib.contextmanager
def compiler_left_out() -> Iterator[None]:
    """Let what is imported meanwhile find stand-ins for the compiler, where it is not imported yet."""
    if any(name in sys.modules for name in COMPILER):
        yield
        return
    compiler, utils = (ModuleType(name) for name in COMPILER)
    compiler.disable, utils.is_compile_supported = _disable, _is_compile_supported  # type: ignore[attr-defined]
    sys.modules.update(zip(COMPILER, (compiler, utils), strict=True))
    try:
        yield
    finally:
        for name in COMPILER:
            del sys.modules[name]


def _disable(function: Callable[..., Any], *options: Any, **named: Any) -> Callable[..., Any]:
    """Return a function that the compiler is told to leave alone once there is a compiler."""

    @functools.wraps(function)
    def left_alone(*given: Any, **by_name: Any) -> Any:
        if "torch._dynamo" not in sys.modules:
            return function(*given, **by_name)
        return torch.compiler.disable(function, *options, **named)(*given, **by_name)  # type: ignore[no-untyped-call]

    return left_alone


def _is_compile_supported(device_type: str) -> bool:
    from torch._dynamo.utils import is_compile_supported

    return bool(is_compile_supported(device_type))


class NoInitialValues(TorchFunctionMode):
    """Leaves weights as they are made: on the meta device they have no values, and drawing imports the compiler."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run anything but what fills a tensor."""
        named = kwargs or {}
        if getattr(function, "__module__", "") == nn.init.__name__ or getattr(function, "__name__", "") in FILLING:
            return args[0] if args else named["tensor"]
        return function(*args, **named)


with compiler_left_out():
    import timm
    import timm.data
    import timm.layers
    import timm.models

__all__ = ["NoInitialValues", "timm"]
