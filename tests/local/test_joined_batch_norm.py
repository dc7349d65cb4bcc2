"""Batch norm over two ranks is torch's on the joined batch: outputs, gradients, running statistics, to rounding."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.distributed
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from tests.local.ranks import NUM_RANKS
from uml_core.feed.mixing import rank_share
from uml_core.gradients.joined_batch_norm import JoinedBatchNorm, has_batch_norm

HALF = "bfloat16"
NORMS = {
    HALF: lambda: nn.BatchNorm2d(3),
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


def on_a_share(norm: nn.Module, batch: Tensor, weights: Tensor, share: slice) -> tuple[Tensor, Tensor]:
    """Norm this rank's share of a batch by a joined norm, forward and backward; returns output and gradient."""
    part = batch.detach()[share].requires_grad_()
    with JoinedBatchNorm():
        output = norm(part)
    (output * weights[share]).sum().backward()
    assert part.grad is not None
    return output, part.grad


def both(rank: int, device: str) -> dict[str, dict[str, tuple[Any, Any]]]:
    """What this rank has of each norm, joined, beside torch's on the joined batch."""
    found = {}
    torch.manual_seed(0)
    cases = [(name, make, rows) for name, make in NORMS.items() for rows in (7, 1)]  # of one, rank 0 has none
    for name, make, rows in cases:
        whole = make()
        if rows == 1 and isinstance(whole, nn.BatchNorm1d):
            continue  # torch takes no variance of one number
        own, (batch, weights) = copy.deepcopy(whole), inputs_of(whole, rows)
        if name == HALF:  # as under autocast; its numbers lie too far apart at 100
            batch, weights = (batch - 100).bfloat16(), weights.bfloat16()
        share = rank_share(rows, rank, NUM_RANKS)
        output = whole(batch.requires_grad_())
        (output * weights).sum().backward()
        own_output, own_gradient = on_a_share(own, batch, weights, share)
        assert batch.grad is not None
        for parameter in own.parameters():
            torch.distributed.all_reduce(parameter.grad)
        pairs = {
            "output": (own_output, output[share]),
            "input's gradient": (own_gradient, batch.grad[share]),
            "weights' gradients": tuple([each.grad for each in norm.parameters()] for norm in (own, whole)),
            "state": (own.state_dict(), whole.state_dict()),
        }
        with JoinedBatchNorm():  # what is only measured is each rank's own
            pairs["measured"] = (own.eval()(batch), whole.eval()(batch))
        found[f"{name}, {rows} rows"] = pairs
    return found


def check_norms(ranks: list[dict[str, dict[str, tuple[Any, Any]]]]) -> None:
    """Compare what `both` has found on two ranks; tests/local/test_sharding.py has them, whose start takes seconds."""
    for rank, found in enumerate(ranks):
        assert len(found) == 2 * len(NORMS) - 1
        for case, pairs in found.items():
            for what, (own, whole) in pairs.items():
                # A bfloat16 gradient is rounded more than once on the way.
                tolerance = {"atol": 0.03, "rtol": 0.0} if HALF in case and "gradient" in what else {}
                where = f"rank {rank}, {case}, {what}"
                torch.testing.assert_close(own, whole, msg=lambda text, at=where: f"{at}: {text}", **tolerance)


@pytest.mark.parametrize(("module", "expected"), [(BatchNormAct2d(3), True), (nn.Linear(2, 2), False)])
def test_which_modules_have_one(module: nn.Module, expected: bool) -> None:
    assert has_batch_norm(nn.Sequential(module)) == expected
