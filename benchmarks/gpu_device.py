"""What a device does in a step: seconds by the wall, seconds busy by kind of kernel, and FLOPs of a model.

On a CUDA device the spans are its kernels and copies; on a CPU, which only tries the code, torch's operators.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

# Dense bfloat16 without sparsity, from the vendor's data sheets (SXM); by what a device's name holds.
PEAK_TFLOPS = {"H100 80GB HBM3": 989, "H200": 989, "A100": 312}

# The first that matches a kernel's or operator's name. cuBLAS calls its kernels nvjet or gemm; inductor names what it
# fuses by the operators in it, and so comes first.
KINDS = (
    ("fused by the compiler", r"^triton_(poi|red|per)"),
    ("attention", r"flash|fmha|sdpa|attention"),
    ("augmentation", r"grid_sampl|affine"),
    ("normalisation", r"layer_?norm|batch_?norm|bn_|softmax|GammaBeta|rms_?norm"),
    ("optimiser and gradient norm", r"adam|multi_tensor_apply|foreach"),
    (
        "matrix products",
        r"gemm|nvjet|cublas|cutlass|xmma|splitk|gemv|triton_tem|dgrad|wgrad|fprop|conv(ol|_d|2d)|::(add|b|baddb)?mm$",
    ),
    ("copies and casts", r"memcpy|memset|copy|catarray|::(cat|stack|fill_|zero_)$"),
    ("elementwise", r"elementwise|dropout|gelu|relu|::(add|sub|mul|div|neg|exp|clone)_?$"),
    ("reductions", r"reduce|::(sum|mean|norm|max)$|nll_loss"),
)
OTHER = "other"


@dataclass(frozen=True)
class Bench:
    """Where figures are measured, whether the code is only tried, and the device's peak, None where it is not known."""

    device: torch.device
    small: bool
    peak_flops: float | None

    def synchronize(self) -> None:
        """Wait for what the device has been asked to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds_of(self, run: Callable[[], object]) -> float:
        """The wall seconds of a call, to the end of the device's work."""
        self.synchronize()
        started = time.perf_counter()
        run()
        self.synchronize()
        return time.perf_counter() - started

    def busy(self, run: Callable[[], object]) -> DeviceTime:
        """What the device does during a call."""
        on_gpu = self.device.type == "cuda"
        self.synchronize()
        with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
            run()
            self.synchronize()
        return DeviceTime.of(spans_of(profiler.events(), on_gpu=on_gpu))


@dataclass(frozen=True)
class Span:
    """One kernel, copy or operator: its name, and when it ran, in microseconds."""

    name: str
    start_us: float
    end_us: float


@dataclass(frozen=True)
class DeviceTime:
    """Seconds in which the device did anything, and the shares of the kinds of work in the sum of all spans."""

    busy_s: float
    shares: dict[str, float]

    @classmethod
    def of(cls, spans: Iterable[Span]) -> DeviceTime:
        """Sum spans by kind; where several run at once, the device is busy once. NaN where nothing was recorded."""
        ordered = sorted(spans, key=lambda span: span.start_us)
        if not ordered:
            return cls(float("nan"), {})
        by_kind: dict[str, float] = defaultdict(float)
        busy_us, end_us = 0.0, float("-inf")
        for span in ordered:
            by_kind[kind_of(span.name)] += span.end_us - span.start_us
            busy_us += max(0.0, span.end_us - max(span.start_us, end_us))
            end_us = max(end_us, span.end_us)
        total = sum(by_kind.values())
        kinds = [*(kind for kind, _ in KINDS), OTHER]
        return cls(busy_us / 1e6, {kind: by_kind[kind] / total for kind in kinds if kind in by_kind})

    def idle_share(self, wall_s: float) -> float:
        """The share of wall seconds, measured without the profiler, in which the device did nothing."""
        return max(1 - self.busy_s / wall_s, 0.0)  # in this order NaN stays NaN


def spans_of(events: Iterable[Any], *, on_gpu: bool) -> list[Span]:
    """The profiler's kernels and copies on the device; of a CPU's operators the time they do not pass on."""
    spans = []
    for event in events:
        if str(event.device_type).endswith("CUDA") != on_gpu or getattr(event, "is_user_annotation", False):
            continue
        start_us = event.time_range.start
        for child in [] if on_gpu else sorted(event.cpu_children, key=lambda child: child.time_range.start):
            spans.append(Span(event.name, start_us, child.time_range.start))
            start_us = child.time_range.end
        spans.append(Span(event.name, start_us, event.time_range.end))
    return spans


def kind_of(name: str) -> str:
    """The kind of work of a kernel or operator, by its name."""
    return next((kind for kind, pattern in KINDS if re.search(pattern, name, re.IGNORECASE)), OTHER)


def training_flops(build: Callable[[], torch.nn.Module], shape: tuple[int, ...]) -> int:
    """The FLOPs of one forward and backward pass over an input of a shape; a multiplication and sum are two.

    Counted without memory or arithmetic (torch's meta device). Attention counts by its products, without what fused
    kernels compute a second time on the way back: utilisation is of the model's FLOPs, not the hardware's.
    """
    with torch.device("meta"):
        model, values = build().train(), torch.empty(shape)
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        model(values).sum().backward()
    return int(counter.get_total_flops())


def peak_flops_of(name: str, given_tflops: float | None) -> float | None:
    """A device's peak in FLOP/s: what was given, else what is known of its name, else None."""
    if given_tflops is not None:
        return given_tflops * 1e12
    known = [tflops for part, tflops in PEAK_TFLOPS.items() if part in name]
    return known[0] * 1e12 if known else None
