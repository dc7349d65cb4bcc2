"""Sentences in space text: which corpus, how many rows per class really took part, and how the arm did."""

from __future__ import annotations

import math
from dataclasses import dataclass

from uml_core.reporting.collect import TEXT, SweepResults, condition_of
from uml_core.reporting.tables import ArmRow, arm_rows


@dataclass(frozen=True)
class SentenceRow:
    """One arm: its corpus and amount, and the rows per class it had (NaN where no trial logged them)."""

    corpus: str
    amount: str
    rows_per_class: float
    result: ArmRow


def sentence_rows(sweep: SweepResults) -> list[SentenceRow]:
    """Return the arms of space text; none for other spaces."""
    if sweep.space != TEXT:
        return []
    rows = []
    for row in arm_rows(sweep):
        if row.test is None:
            continue
        corpus, _, amount = ("", "", "none") if row.arm == sweep.baseline else row.arm.rpartition("_")
        counts = [
            trial.metrics.get(f"data/train_rows/{corpus}", math.nan) / trial.metrics.get("data/classes", math.nan)
            for trial in sweep.trials
            if trial.arm == row.arm and condition_of(trial) == row.condition and trial.status != "FAILED"
        ]
        rows_per_class = 0.0 if row.arm == sweep.baseline else counts[0] if counts else math.nan
        rows.append(SentenceRow(corpus, amount, rows_per_class, row))
    return rows
