"""Batch norm over two ranks is torch's on the joined batch: outputs, gradients, running statistics, to rounding."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from uml_core.mixing import rank_share
from uml_core.models.joined_batch_norm import JoinedBatchNorm, has_batch_norm

NUM_RANKS = 2
NORMS = {
    "2d": lambda: nn.BatchNorm2d(3, dtype=torch.float64),
    "with an activation": lambda: BatchNormAct2d(3, dtype=torch.float64),
    "1d, no weights": lambda: nn.BatchNorm1d(3, affine=False, dtype=torch.float64),
    "no statistics": lambda: nn.BatchNorm2d(3, track_running_stats=False, dtype=torch.float64),
    "averages of all": lambda: nn.BatchNorm2d(3, momentum=None, dtype=torch.float64),
}


def inputs_of(norm: nn.Module, rows: int) -> tuple[Tensor, Tensor]:
    """A batch whose means are far from zero, and what its outputs are weighed with in the loss."""
    draws = torch.Generator().manual_seed(rows)
    shape = (rows, 3) if isinstance(norm, nn.BatchNorm1d) else (rows, 3, 4, 4)
    batch, weights = (torch.randn(shape, generator=draws, dtype=torch.float64) for _ in range(2))
    return batch + 100, weights


def compare_bfloat16(rank: int) -> None:
    """As under autocast: weights and statistics are float32."""
    whole, batch = nn.BatchNorm2d(3), torch.randn(8, 3, 4, 4).bfloat16().requires_grad_()
    own, share = copy.deepcopy(whole), rank_share(8, rank, NUM_RANKS)
    output = whole(batch)
    output.float().square().sum().backward()
    part = batch.detach()[share].requires_grad_()
    with JoinedBatchNorm():
        own_output = own(part)
    own_output.float().square().sum().backward()
    assert own_output.dtype == torch.bfloat16
    torch.testing.assert_close(own_output, output[share])
    torch.testing.assert_close(own.state_dict(), whole.state_dict())
    assert batch.grad is not None
    torch.testing.assert_close(part.grad, batch.grad[share], atol=0.03, rtol=0)


def compare(rank: int, directory: Path) -> None:
    """Run both on one rank, which has a share of the batch; raises AssertionError where they differ."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{directory}/meeting", rank=rank, world_size=NUM_RANKS)
    torch.manual_seed(0)
    compare_bfloat16(rank)
    for name, make in NORMS.items():
        for rows in (7, 1):  # of one, rank 0 has none
            whole = make()
            own, (batch, weights) = copy.deepcopy(whole), inputs_of(whole, rows)
            if rows == 1 and isinstance(whole, nn.BatchNorm1d):
                continue  # torch takes no variance of one number
            batch.requires_grad_()
            output = whole(batch)
            (output * weights).sum().backward()
            share = rank_share(rows, rank, NUM_RANKS)
            part = batch.detach()[share].requires_grad_()
            with JoinedBatchNorm():
                own_output = own(part)
            (own_output * weights[share]).sum().backward()
            torch.testing.assert_close(own_output, output[share], msg=lambda text, name=name: f"{name}: {text}")
            assert batch.grad is not None
            torch.testing.assert_close(part.grad, batch.grad[share], msg=lambda text, name=name: f"{name}: {text}")
            for ours, theirs in zip(own.parameters(), whole.parameters(), strict=True):
                torch.distributed.all_reduce(ours.grad)
                torch.testing.assert_close(ours.grad, theirs.grad)
            torch.testing.assert_close(own.state_dict(), whole.state_dict())
            with JoinedBatchNorm():  # what is only measured is each rank's own
                torch.testing.assert_close(own.eval()(batch), whole.eval()(batch))
    torch.distributed.destroy_process_group()


def test_two_ranks_norm_as_one_on_the_joined_batch(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(compare, (tmp_path,), nprocs=NUM_RANKS)


@pytest.mark.parametrize(("module", "expected"), [(BatchNormAct2d(3), True), (nn.Linear(2, 2), False)])
def test_which_modules_have_one(module: nn.Module, expected: bool) -> None:
    assert has_batch_norm(nn.Sequential(module)) == expected
