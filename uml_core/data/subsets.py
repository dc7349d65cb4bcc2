"""Splits and few-shot subsets: stratified, seeded, nested (the 4-shot set contains the 2-shot set).

Shape legend: N rows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


def rows_by_class(labels: npt.NDArray[np.int64], rows: Rows, *, seed: int) -> dict[int, Rows]:
    """Return each class's rows in a seeded order that does not depend on how many will be taken.

    Args:
        labels: class codes (N,); `rows` index into them.
        rows: the rows to group.
        seed: draws the order, separately for each class.
    """
    return {
        int(code): np.random.default_rng([seed % 2**32, int(code)]).permutation(np.sort(rows[labels[rows] == code]))
        for code in np.unique(labels[rows])
    }


def take_shots(labels: npt.NDArray[np.int64], rows: Rows, *, shots: int, seed: int) -> Rows:
    """Return at most `shots` rows of every class; a larger `shots` returns a superset."""
    taken = [order[:shots] for order in rows_by_class(labels, rows, seed=seed).values()]
    return np.sort(np.concatenate(taken)) if taken else rows[:0]


def split_off(labels: npt.NDArray[np.int64], rows: Rows, *, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Split rows into (kept, taken): about `fraction` of every class is taken, and every class keeps at least one.

    A class with two rows or more gives at least one row when `fraction` is above 0.
    """
    kept, taken = [rows[:0]], [rows[:0]]
    for order in rows_by_class(labels, rows, seed=seed).values():
        count = min(len(order) - 1, max(1, round(len(order) * fraction))) if fraction > 0 else 0
        # The end of the order: the few-shot subsets take from its front, and stay as they are.
        kept.append(order[: len(order) - count])
        taken.append(order[len(order) - count :])
    return np.sort(np.concatenate(kept)), np.sort(np.concatenate(taken))
