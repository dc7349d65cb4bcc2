"""Trained encoders in shards (FSDP2): each of N ranks keeps 1/N of their weights, gradients and optimiser state.

In: encoders with loaded weights, on several ranks. Out: the same modules, of which a block gathers its weights when it
runs, forward and backward, and lets go of them. The heads are small and stay whole on every rank. A step is the step
of one worker on the joined batch, to rounding; what is saved is whole (`uml_core.gradients.ranks.gathered`), so a run
goes on with any number of workers, sharded or not.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from uml_core.config import Experiment
from uml_core.gradients.autograd import AutogradGradient
from uml_core.gradients.batch import StepBatch
from uml_core.gradients.ranks import RankContext, average_gradients, is_shard

M_MMAP_THRESHOLD = -3  # glibc's malloc.h


def is_sharded(experiment: Experiment, ranks: RankContext) -> bool:
    """Whether encoders are sharded here: `train.sharding` asks for it, and there are several ranks."""
    return experiment.train.sharding == "full" and ranks.world_size > 1


def shard_encoders(encoders: Sequence[nn.Module], ranks: RankContext, *, bfloat16: bool) -> None:
    """Shard encoders over all ranks, block by block; their parameters become other objects, under the same names.

    They may lie on the CPU: a block goes to the device when it is sharded. Where nobody holds the whole parameters any
    more, no device ever has all of them.

    Args:
        encoders: with equal weights on every rank.
        ranks: the device, and how many ranks there are.
        bfloat16: blocks gather their weights and compute in bfloat16; weights are kept, and gradients summed, in
            float32.
    """
    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bfloat16 else None, reduce_dtype=torch.float32 if bfloat16 else None
    )
    if ranks.device.type == "cpu":
        _return_what_is_freed()
    for encoder in encoders:
        # Before FSDP's own: it wants no view of a larger tensor (a CLS token).
        encoder.register_forward_hook(lambda _, __, output: output.clone() if isinstance(output, Tensor) else output)
        for block in (*blocks_of(encoder), encoder):
            for parameter in block.parameters():
                if not is_shard(parameter):  # FSDP takes no channels-last weights; pictures stay so
                    parameter.data = parameter.data.contiguous()
            # Also the outermost: between steps, and after an evaluation, only shards are the model's parameters.
            fully_shard(block, mesh=mesh, reshard_after_forward=True, mp_policy=policy)


def _return_what_is_freed() -> None:
    """Let the C library give buffers of 1 MiB and more back to the system as soon as they are freed.

    By default glibc keeps those of up to 32 MiB, which gathered blocks are: measured, a process with half of a ViT-B
    came to hold as much as one with all of it. Other C libraries do not know the setting.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20)


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The modules that are gathered as one: the innermost repeated ones (of one class, in a list or sequence).

    Of a transformer its layers, of a convolutional network the blocks of each stage; what is around them is gathered
    with the whole.
    """
    inner = [block for child in module.children() for block in blocks_of(child)]
    if inner or not isinstance(module, nn.ModuleList | nn.Sequential):
        return inner
    children = list(module.children())
    is_repeated = len(children) > 1 and len({type(child) for child in children}) == 1
    if not is_repeated or isinstance(children[0], nn.ModuleList | nn.ModuleDict):  # which nobody calls
        return []
    return [child for child in children if next(child.parameters(), None) is not None]


class ShardedGradient(AutogradGradient):
    """The gradient of the weighted loss where encoders are sharded: FSDP averages theirs, this the heads'.

    The parts of a batch are each reduced at once: shards of gradients add up, never whole ones.
    """

    def _over_ranks(self, model: nn.Module) -> nn.Module:
        return model

    def _add(self, part: StepBatch, *, is_last: bool) -> dict[str, Tensor]:
        losses = super()._add(part, is_last=is_last)
        if is_last:
            average_gradients(self._parameters)
        return losses
