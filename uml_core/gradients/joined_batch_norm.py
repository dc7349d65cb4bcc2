"""Batch norm over the batches of all ranks: what one worker computes on the joined batch.

Not torch's SyncBatchNorm: that refuses tensors on a CPU, and is put in place of modules, of which timm's then no longer
call the activation they hold. This replaces the function that all of them call, on any device. It runs torch's own
kernels: written as differentiable sums it would be half as long and pass over the batch several times more.

Shape legend: B batch of this rank, C channels; what follows (height and width, or time) is averaged over, as B is.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class JoinedBatchNorm(TorchFunctionMode):
    """While it is entered, batch norm that trains takes mean and variance over all ranks, in forward and backward.

    Every rank calls the same ones in the same order; a rank's batch may be empty.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (joined_batch_norm if function is functional.batch_norm else function)(*args, **(kwargs or {}))


def has_batch_norm(module: nn.Module) -> bool:
    return any(isinstance(each, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) for each in module.modules())


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
    """What torch.nn.functional.batch_norm returns for this rank's rows of the joined batch."""
    if not training:
        return functional.batch_norm(input_BC, running_mean, running_var, weight, bias, False, momentum, eps)
    output_BC, mean_C, var_C, count = _JoinedNorm.apply(input_BC, weight, bias, eps)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean_C.to(running_mean), momentum)
            running_var.lerp_((var_C * count / (count - 1).clamp_min(1)).to(running_var), momentum)
    result: Tensor = output_BC
    return result


class _JoinedNorm(torch.autograd.Function):
    """Torch's kernels for batch norm of given means and variances, with these taken over all ranks."""

    @staticmethod
    def forward(
        ctx: Any, input_BC: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The normed batch, the joined batch's mean and variance (C,), and how many numbers they are of."""
        num_channels = input_BC.shape[1]
        # Never in half precision, as in torch under autocast.
        mean_C = input_BC.new_zeros(num_channels, dtype=torch.promote_types(input_BC.dtype, torch.float32))
        var_C, count = torch.zeros_like(mean_C), input_BC.numel() / num_channels
        if count:
            mean_C, var_C = torch.ops.aten.batch_norm_update_stats(input_BC, mean_C, var_C, 0.0)
        sums = _over_ranks(torch.cat([mean_C * count, mean_C.new_tensor([count])]))
        joined_C, total = sums[:-1] / sums[-1], sums[-1]
        var_C = _over_ranks((var_C + (mean_C - joined_C).square()) * count) / total
        ctx.eps = eps
        ctx.save_for_backward(input_BC, weight, joined_C, var_C, total)
        ctx.mark_non_differentiable(joined_C, var_C, total)
        return functional.batch_norm(input_BC, joined_C, var_C, weight, bias, False, 0.0, eps), joined_C, var_C, total

    @staticmethod
    def backward(ctx: Any, gradient_BC: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the batch, and of weight and bias by this rank's part of it.

        With y the normed batch before its weight w: dx = w/std (dy - mean(dy) - y mean(dy y)), means over all ranks.
        """
        input_BC, weight, mean_C, var_C, total = ctx.saved_tensors
        weights_C = torch.ones_like(mean_C) if weight is None else weight
        if input_BC.numel():
            as_given_BC, dweight_C, dbias_C = torch.ops.aten.native_batch_norm_backward(
                gradient_BC, input_BC, weights_C, mean_C, var_C, None, None, False, ctx.eps, [True, True, True]
            )
        else:  # torch would divide by its size
            as_given_BC, dweight_C, dbias_C = gradient_BC.clone(), torch.zeros_like(mean_C), torch.zeros_like(mean_C)
        mean_dbias_C, mean_dweight_C = (_over_ranks(torch.stack([dbias_C, dweight_C])) / total).unbind()
        inverse_C = torch.rsqrt(var_C + ctx.eps)
        slope_C = -weights_C * inverse_C.square() * mean_dweight_C
        offset_C = -weights_C * inverse_C * mean_dbias_C - slope_C * mean_C
        shape = [1, -1, *[1] * (input_BC.dim() - 2)]
        slope, offset = (each.view(shape).to(input_BC.dtype) for each in (slope_C, offset_C))
        dinput_BC = as_given_BC.addcmul_(input_BC, slope).add_(offset)
        return dinput_BC, None if weight is None else dweight_C, dbias_C if ctx.needs_input_grad[2] else None, None


def _over_ranks(values: Tensor) -> Tensor:
    torch.distributed.all_reduce(values)
    return values
