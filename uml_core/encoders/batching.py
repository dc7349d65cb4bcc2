"""Which rows share a batch, and how many: bounded by what they cost once padded, and by memory.

Shape legend: B batch, N rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def plan_batches(
    costs: Sequence[int], *, batch_size: int, unit_cost: int | None = None, equal_cost: bool = False
) -> list[list[int]]:
    """Return batches of row indices, costliest first; each row is in exactly one.

    Args:
        costs: of each of N rows, its length say.
        batch_size: rows in a batch; with `unit_cost`, the padded cost of a batch is at most batch_size * unit_cost.
        unit_cost: what one row of `batch_size` pays for. A batch of costlier rows holds fewer, down to one.
        equal_cost: put only rows of the same cost together.
    """
    order = sorted(range(len(costs)), key=lambda index: -costs[index])
    groups = [list(group) for _, group in groupby(order, key=lambda index: costs[index])] if equal_cost else [order]
    batches = []
    for group in groups:
        start = 0
        while start < len(group):
            # The first row is the costliest of its batch: all others are padded to it.
            cost = costs[group[start]]
            count = batch_size if unit_cost is None else max(1, batch_size * unit_cost // max(1, cost))
            batches.append(group[start : start + count])
            start += count
    return batches
