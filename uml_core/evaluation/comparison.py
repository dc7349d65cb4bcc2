"""Two runs on the same test rows: paired difference in accuracy, bootstrap interval, and an exact test.

In: two lists of evaluated runs, paired by their order (one pair a seed). Out: a `Comparison`.

Shape legend: N test rows of a pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from uml_core.errors import InputError
from uml_core.evaluation.run import EvaluatedRun
from uml_core.evaluation.statistics import (
    BootstrapInterval,
    PairedDifference,
    bootstrap_difference,
    mcnemar,
    paired_difference,
    sign_flip_test,
)
from uml_core.figures.words import percent

SPLIT = "test"


@dataclass(frozen=True)
class Comparison:
    """What one run (or a list of them, over seeds) has over another on test rows that both have."""

    accuracy: float
    other_accuracy: float
    bootstrap: BootstrapInterval
    wins: int  # (row, seed) pairs that only ours gets right
    losses: int
    mcnemar_p: float  # NaN for several seeds, whose rows are not independent
    seeds: PairedDifference | None  # None for one pair
    sign_flip_p: float  # NaN for one pair
    rows: int  # of all pairs together
    left_out: int  # test rows that only one of a pair has

    def metrics(self, prefix: str) -> dict[str, float]:
        values = {
            "test_accuracy": self.other_accuracy,
            "difference": self.bootstrap.mean,
            "difference_low": self.bootstrap.low,
            "difference_high": self.bootstrap.high,
            "wins": float(self.wins),
            "losses": float(self.losses),
            "rows": float(self.rows),
        }
        if self.seeds is None:
            values["mcnemar_p"] = self.mcnemar_p
        else:
            values |= {"seeds_low": self.seeds.low, "seeds_high": self.seeds.high, "seeds_p": self.seeds.p_value}
            values["sign_flip_p"] = self.sign_flip_p
        return {f"{prefix}/{name}": value for name, value in values.items()}

    def lines(self) -> list[str]:
        boot = self.bootstrap
        over = "test rows" if self.seeds is None else "seeds and test rows"
        lines = [
            f"accuracy {percent(self.accuracy)} % against {percent(self.other_accuracy)} %: {100 * boot.mean:+.1f} "
            f"points, 95 % bootstrap interval over {over} {100 * boot.low:+.1f} to {100 * boot.high:+.1f} "
            f"({self.rows} paired rows)"
        ]
        if self.seeds is None:
            lines.append(
                f"rows only ours gets right: {self.wins}, only the other: {self.losses}; McNemar's exact test "
                f"p = {self.mcnemar_p:.3g}. One pair of runs: the chance of training is not in it"
            )
        else:
            lines.append(
                f"over {self.seeds.count} paired seeds: t interval {100 * self.seeds.low:+.1f} to "
                f"{100 * self.seeds.high:+.1f}, p = {self.seeds.p_value:.3g}; exact sign-flip test "
                f"p = {self.sign_flip_p:.3g} (it cannot be below {2 / 2**self.seeds.count:.3g} with so few)"
            )
        if self.left_out:
            lines.append(f"{self.left_out} test rows that only one of a pair has were left out")
        return lines


def compare(ours: Sequence[EvaluatedRun], others: Sequence[EvaluatedRun], *, seed: int = 0) -> Comparison:
    """Compare as many runs pair by pair, on the test rows that both runs of a pair have.

    Raises:
        InputError: targets or classes differ, or a pair shares no test row.
    """
    pairs = [_paired_hits(mine, other) for mine, other in zip(ours, others, strict=True)]
    differences = [mine - other for mine, other, _ in pairs]
    accuracies = np.array([(mine.mean(), other.mean()) for mine, other, _ in pairs])
    wins, losses = (int(sum((difference == sign).sum() for difference in differences)) for sign in (1, -1))
    several, num_rows = len(pairs) > 1, sum(map(len, differences))
    mine_by_pair, other_by_pair = (dict(enumerate(column)) for column in accuracies.T.tolist())
    return Comparison(
        accuracy=float(accuracies[:, 0].mean()),
        other_accuracy=float(accuracies[:, 1].mean()),
        bootstrap=bootstrap_difference(differences, crossed=len({ids for *_, ids in pairs}) == 1, seed=seed),
        wins=wins,
        losses=losses,
        mcnemar_p=np.nan if several else mcnemar(wins, losses),
        seeds=paired_difference(mine_by_pair, other_by_pair) if several else None,
        sign_flip_p=sign_flip_test(accuracies[:, 0] - accuracies[:, 1]) if several else np.nan,
        rows=num_rows,
        left_out=sum(len(run.labels(SPLIT)) for run in (*ours, *others)) - 2 * num_rows,
    )


Hits = npt.NDArray[np.float64]


def _paired_hits(mine: EvaluatedRun, other: EvaluatedRun) -> tuple[Hits, Hits, tuple[str, ...]]:
    """Which of the shared test rows each run gets right (1, else 0), and their ids."""
    if (mine.target, mine.classes) != (other.target, other.classes):
        raise InputError(
            f"the runs differ in target or classes ({mine.target}, {len(mine.classes)} classes, against "
            f"{other.target}, {len(other.classes)}); compare runs on one task"
        )
    if not (mine.has_test and other.has_test):
        raise InputError(f"target {mine.target} has no test split to compare on; set data.test_fraction, or add one")
    found = [dict(zip(run.ids(SPLIT), run.predicted(SPLIT) == run.labels(SPLIT), strict=True)) for run in (mine, other)]
    ids = tuple(sorted(set(found[0]) & set(found[1])))
    if not ids:
        raise InputError("the runs share no test row; compare runs of one data.split_seed and data.test_fraction")
    hits = [np.array([hit[row_id] for row_id in ids], dtype=np.float64) for hit in found]
    return hits[0], hits[1], ids
