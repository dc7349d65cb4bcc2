"""Tensors of which every rank holds a part: seen as a rank's part, as whole ones, and measured over all of them.

A shard is a `DTensor` whose first dimension is divided among the ranks; everything else is a plain tensor, alike on all
ranks. Functions that gather or measure shards are collective: every rank calls them, at the same place. On plain
tensors alone they are what torch has, to the bit, and talk to nobody.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.utils._pytree import tree_map

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_shard(value: object) -> TypeGuard[DTensor]:
    """Return whether something is a shard. Half a second of imports is paid by processes that shard, not by all."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """Return what this rank holds of a tensor, not copied: its shard, or the tensor itself."""
    return tensor.to_local() if is_shard(tensor) else tensor


def gathered(tree: Any) -> Any:
    """Return nested dicts and lists with every shard made whole, on the CPU of rank 0; elsewhere None in its place."""

    def whole(value: Any) -> Any:
        if not is_shard(value):
            return value
        tensor: Tensor = value.full_tensor().detach()
        return tensor.cpu() if torch.distributed.get_rank() == 0 else None

    return tree_map(whole, tree)


def whole_copy(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a copy of a model's weights on the CPU, shards made whole: those on rank 0 alone."""
    copies = {}
    for name, value in weights.items():
        copy = gathered(value) if is_shard(value) else value.detach().cpu().clone()
        if copy is not None:
            copies[name] = copy
    return copies


def sharded_like(whole: Tensor, like: Tensor) -> Tensor:
    """Return this rank's shard of a whole tensor where `like` is one; else the tensor as it is."""
    if not is_shard(like) or is_shard(whole):
        return whole
    mesh = like.device_mesh
    chunks, rank = whole.chunk(mesh.size()), mesh.get_local_rank()  # fewer chunks than ranks: the last hold no row
    own = chunks[rank] if rank < len(chunks) else whole[:0]
    placed = own.to(like.device).contiguous()
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(placed, mesh, like.placements, shape=like.shape, stride=like.stride())


def sharded_weights(whole: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a model's whole weights, sharded as those of the same name in its own `state_dict()`."""
    return {name: sharded_like(value, like[name]) if name in like else value for name, value in whole.items()}


def sharded_moments(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimiser's whole state, with what is of a parameter's shape sharded, and laid out, as the parameter.

    The fused optimiser walks parameter and moments in the order of memory; what was sharded is never channels-last.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def as_parameter(value: Tensor, parameter: Tensor) -> Tensor:
        if is_shard(parameter) or value.stride() == parameter.stride():
            return sharded_like(value, parameter)
        return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value).detach()

    def of(parameter: Tensor, values: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: as_parameter(value, parameter) if getattr(value, "shape", None) == parameter.shape else value
            for key, value in values.items()
        }

    return {**state, "state": {index: of(parameters[index], values) for index, values in state["state"].items()}}


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Return the Euclidean norm of all parameters' gradients, a scalar: of shards over all ranks, alike on each."""
    plain, shards = _with_gradients(parameters)
    norm = get_total_norm([_gradient(parameter) for parameter in plain])
    if not shards:
        return norm
    squared = get_total_norm([local(_gradient(shard)) for shard in shards]).square()
    torch.distributed.all_reduce(squared)
    return (norm.square().to(squared) + squared).sqrt()


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> None:
    """Scale all gradients down to a norm over all parameters where theirs is larger."""
    parameters = list(parameters)
    norm = gradient_norm(parameters)
    for kind in _with_gradients(parameters):
        clip_grads_with_norm_(kind, max_norm, norm)


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Set the gradients of plain parameters to their mean over all ranks, in one exchange."""
    gradients = [_gradient(parameter) for parameter in _with_gradients(parameters)[0]]
    if not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    means = torch.split_with_sizes(flat, [each.numel() for each in gradients])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))


@torch.no_grad()
def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether no tensor holds a NaN or an infinite number, on any rank where there are shards."""
    tensors = list(tensors)
    finite = torch.stack([local(tensor).sum() for tensor in tensors]).isfinite().all()
    if any(is_shard(tensor) for tensor in tensors):
        flag = finite.to(torch.int32)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MIN)
        return bool(flag)
    return bool(finite)


def _with_gradients(parameters: Iterable[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the parameters that have a gradient: plain ones, and shards."""
    present = [parameter for parameter in parameters if parameter.grad is not None]
    shards: list[Tensor] = [parameter for parameter in present if is_shard(parameter)]
    return [parameter for parameter in present if not is_shard(parameter)], shards


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None, "chosen by it"
    return parameter.grad
