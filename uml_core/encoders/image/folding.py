"""Batch normalisation folded into the convolution before it: a third more pictures a second, the same features.

In evaluation mode y = BN(conv(x)) is one convolution with other weights. Only timm's own modules are looked at, only
where the traced graph shows that nothing but the normalisation reads the convolution's output. What cannot be traced
stays as it is. A folded module is for encoding: training needs the normalisation.

torch.fx.experimental.optimization.fuse would not do: it traces into timm's own layers, which fails on the padding of
tf_efficientnet_lite0 (the demo's encoder) and hides BatchNormAct2d from it.
"""

from __future__ import annotations

from collections import Counter

import timm.layers
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

# Exact types: a subclass may compute something else.
CONVOLUTIONS = (nn.Conv2d, timm.layers.Conv2dSame)
NORMALISATIONS = (nn.BatchNorm2d, timm.layers.BatchNormAct2d)


class _Tracer(fx.Tracer):
    """Stops at the modules that are folded, and at those that timm says cannot be traced through."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(timm.layers.get_notrace_functions()))
        self._leaves = (*CONVOLUTIONS, *NORMALISATIONS, *timm.layers.get_notrace_modules())

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return type(module) in self._leaves or super().is_leaf_module(module, name)


def has_foldable(module: nn.Module) -> bool:
    return any(type(part) in NORMALISATIONS for part in module.modules())


def fold_batch_norms(module: nn.Module) -> int:
    """Fold, in place, each batch normalisation into its convolution; returns how many. `module` is in eval mode.

    The weights are of the precision they are folded in: fold before casting to bfloat16.
    """
    if not has_foldable(module):
        return 0
    try:
        graph = _Tracer().trace(module)
    except (TypeError, ValueError, RuntimeError, AttributeError, AssertionError):  # control flow on values
        return 0
    parts = dict(module.named_modules())
    called = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    pairs = [
        (str(node.args[0].target), str(node.target))
        for node in graph.nodes
        if _reads_one_convolution(node, parts) and called[str(node.target)] == called[str(node.args[0].target)] == 1
    ]
    for convolution, normalisation in pairs:
        norm = parts[normalisation]
        module.set_submodule(convolution, fuse_conv_bn_eval(parts[convolution], norm))
        # What timm's kind does after normalising: dropout, which is none in evaluation, and the activation.
        module.set_submodule(normalisation, nn.Sequential(*norm.children()))
    return len(pairs)


def _reads_one_convolution(node: fx.Node, parts: dict[str, nn.Module]) -> bool:
    if node.op != "call_module" or type(parts[str(node.target)]) not in NORMALISATIONS:
        return False
    source = node.args[0]
    return (
        isinstance(source, fx.Node)
        and source.op == "call_module"
        and type(parts[str(source.target)]) in CONVOLUTIONS
        and len(source.users) == 1
    )
