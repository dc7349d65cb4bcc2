"""Ranks that train together: who one of them is, and tensors of which every rank holds a part.

A shard is a `DTensor` whose first dimension is divided among the ranks; everything else is a plain tensor, alike on all
ranks. Functions that gather or measure shards are collective: every rank calls them, at the same point. On plain
tensors alone they are what torch has, to the bit, and communicate with nobody.

Not `torch.distributed.checkpoint.state_dict`: it names an optimiser's moments by parameter, where checkpoints of before
number them, and takes 0.8 s to import.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class RankContext:
    """Where a run trains: its device, and which of how many ranks it is."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @classmethod
    def cpu(cls) -> RankContext:
        """For a run that is only measured."""
        return cls(torch.device("cpu"))

    def from_rank_zero(self, *values: float) -> tuple[float, ...]:
        """Rank 0's numbers on every rank: by clocks and rounding, ranks would not decide alike."""
        if self.world_size == 1:
            return values
        shared = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.broadcast(shared, src=0)
        return tuple(shared.tolist())


def is_shard(value: object) -> TypeGuard[DTensor]:
    """Whether something is a shard. Half a second of imports is paid by processes that shard, not by all."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, not copied: its shard, or the tensor itself."""
    return tensor.to_local() if is_shard(tensor) else tensor


def gathered(tree: Any) -> Any:
    """Nested dicts and lists with every shard made whole: on the CPU of rank 0, and None on other ranks."""
    if isinstance(tree, Mapping):
        return {key: gathered(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [gathered(value) for value in tree]
    if not is_shard(tree):
        return tree
    whole: Tensor = tree.full_tensor().detach()
    return whole.cpu() if torch.distributed.get_rank() == 0 else None


def whole_copy(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of a model's weights on the CPU, shards made whole: those on rank 0 alone."""
    copies = {
        name: gathered(value) if is_shard(value) else value.detach().cpu().clone() for name, value in weights.items()
    }
    return {name: copy for name, copy in copies.items() if copy is not None}


def sharded_like(whole: Tensor, like: Tensor) -> Tensor:
    """This rank's shard of a whole tensor where `like` is one; else the tensor as it is."""
    if not is_shard(like) or is_shard(whole):
        return whole
    from torch.distributed.tensor import distribute_tensor

    # Contiguous, as shards are: the fused optimiser walks parameter and moments in the order of memory, and a whole
    # picture encoder's are channels-last. src_data_rank None: every rank has read the tensor, and nothing is sent.
    return distribute_tensor(whole.contiguous(), like.device_mesh, like.placements, src_data_rank=None)


def sharded_weights(whole: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's whole weights, sharded as those of the same name in its own `state_dict()`."""
    return {name: sharded_like(value, like[name]) if name in like else value for name, value in whole.items()}


def sharded_moments(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimiser's whole state, with what is of a parameter's shape sharded, and laid out, as the parameter.

    The fused optimiser walks parameter and moments in the order of memory; what was sharded is never channels-last.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def as_parameter(value: Tensor, parameter: Tensor) -> Tensor:
        if is_shard(parameter) or value.stride() == parameter.stride():
            return sharded_like(value, parameter)
        return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value).detach()

    def sharded(parameter: Tensor, moments: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: as_parameter(value, parameter) if getattr(value, "shape", None) == parameter.shape else value
            for key, value in moments.items()
        }

    moments = {index: sharded(parameters[index], values) for index, values in state["state"].items()}
    return {**state, "state": moments}


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """The Euclidean norm of all parameters' gradients, a scalar: of shards over all ranks, alike on each."""
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
    """Whether no tensor holds a NaN or an infinite number, on any rank where there are shards."""
    tensors = list(tensors)
    finite = torch.stack([local(tensor).sum() for tensor in tensors]).isfinite().all()
    if any(is_shard(tensor) for tensor in tensors):
        flag = finite.to(torch.int32)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MIN)
        return bool(flag)
    return bool(finite)


def _with_gradients(parameters: Iterable[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters that have a gradient: plain ones, and shards."""
    present = [parameter for parameter in parameters if parameter.grad is not None]
    shards: list[Tensor] = [parameter for parameter in present if is_shard(parameter)]
    return [parameter for parameter in present if not is_shard(parameter)], shards


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None, "chosen by it"
    return parameter.grad
