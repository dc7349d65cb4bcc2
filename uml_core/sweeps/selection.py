"""Which of several trials is selected: on validation alone, test is not looked at."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

Key = TypeVar("Key")


@dataclass(frozen=True)
class Candidate:
    """What a finished trial has to show."""

    val_accuracy: float  # in [0, 1]
    val_nll: float  # nats
    cost: float  # samples it was trained on, of all corpora
    val_rows: int


def selected(candidates: Mapping[Key, Candidate], *, count_cost: bool = False) -> Key | None:
    """The candidate of the highest validation accuracy, at equal accuracy of the lowest NLL; None of none.

    With `count_cost`, the cheapest of those whose accuracy lies within one standard error of the highest, √(p(1−p)/n)
    over n validation rows (Breiman's one-standard-error rule): what validation cannot tell apart is decided by cost.
    """
    if not candidates:
        return None
    best = max(candidates, key=lambda key: (candidates[key].val_accuracy, -candidates[key].val_nll))
    if not count_cost:
        return best
    accuracy, rows = candidates[best].val_accuracy, max(1, candidates[best].val_rows)
    least = accuracy - math.sqrt(accuracy * (1 - accuracy) / rows)
    near = {key: candidate for key, candidate in candidates.items() if candidate.val_accuracy >= least}
    return min(near, key=lambda key: (near[key].cost, -near[key].val_accuracy, near[key].val_nll))


def pareto_front(candidates: Mapping[Key, Candidate]) -> set[Key]:
    """The candidates that no other beats: none is at least as accurate and as cheap, and better in one."""
    points = {key: (candidate.val_accuracy, -candidate.cost) for key, candidate in candidates.items()}
    return {
        key
        for key, (accuracy, thrift) in points.items()
        if not any(
            other[0] >= accuracy and other[1] >= thrift and other != (accuracy, thrift) for other in points.values()
        )
    }
