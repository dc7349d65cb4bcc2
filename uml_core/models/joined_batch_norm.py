"""Batch norm over the batches of all ranks: what one worker computes on the joined batch.

torch's SyncBatchNorm does it on GPUs, in modules that take the place of others. This takes the place of the function
that all modules call, those of timm, which hold an activation as well, among them; on any device.

Shape legend: B batch of this rank, C channels; what follows (height and width, or time) is averaged over, as B is.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode


class JoinedBatchNorm(TorchFunctionMode):
    """While it is entered, batch norm that trains takes mean and variance over all ranks, in forward and backward.

    Every rank calls the same ones in the same order; a rank's batch may be empty.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run anything but batch norm as it is."""
        return (joined_batch_norm if function is functional.batch_norm else function)(*args, **(kwargs or {}))


def has_batch_norm(module: nn.Module) -> bool:
    """Return whether a module holds batch norm of any kind."""
    return any(isinstance(each, _BatchNorm) for each in module.modules())


def joined_batch_norm(
    input_BC: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Return what torch.nn.functional.batch_norm returns for this rank's rows of the joined batch."""
    if not training:
        return functional.batch_norm(input_BC, running_mean, running_var, weight, bias, False, momentum, eps)
    others = [dim for dim in range(input_BC.dim()) if dim != 1]
    shape = [1, -1, *[1] * (input_BC.dim() - 2)]
    precision = torch.promote_types(input_BC.dtype, torch.float32)  # torch's own, too, under autocast
    values_BC = input_BC.to(precision)
    own = values_BC.new_tensor([values_BC.numel() / values_BC.shape[1]])
    sums = _over_ranks(torch.cat([values_BC.sum(others), own]))
    count, mean_C = sums[-1], sums[:-1] / sums[-1]
    centred_BC = values_BC - mean_C.view(shape)  # twice through the batch: a difference of squares would lose digits
    var_C = _over_ranks(centred_BC.square().sum(others)) / count
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean_C.to(running_mean), momentum)
            running_var.lerp_((var_C * count / (count - 1).clamp_min(1)).to(running_var), momentum)
    scale_C = torch.rsqrt(var_C + eps) * (1 if weight is None else weight.to(precision))
    output_BC: Tensor = centred_BC * scale_C.view(shape)
    if bias is not None:
        output_BC = output_BC + bias.to(precision).view(shape)
    return output_BC.to(input_BC.dtype)


class _SumOverRanks(torch.autograd.Function):
    """The sum over ranks. Every rank's loss depends on every rank's tensor, so gradients are summed, too."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """Return the sum over ranks."""
        total = values.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Return the sum of the ranks' gradients."""
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total


def _over_ranks(values: Tensor) -> Tensor:
    total: Tensor = _SumOverRanks.apply(values)
    return total
