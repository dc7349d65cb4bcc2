"""What training the encoder does to the gain, in space finetune: each pair of arms that differ in the unpaired data."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from uml_core.evaluation.statistics import PairedDifference, Spread, holm, spread
from uml_core.reporting.collect import FINE_TUNING, Condition, SweepResults
from uml_core.reporting.tables import shared_difference

TRAINED = {"frozen_": "nothing", "partial_": "its last blocks", "lora_": "low-rank adapters in it", "": "all of it"}
TEXT = "_trained_text"


@dataclass(frozen=True)
class BackboneRow:
    """One way of training: test accuracy with the unpaired data and without, and the paired difference."""

    condition: Condition
    trained: str  # of the target's encoder, in words
    arm: str
    against: str
    test: Spread
    baseline: Spread
    difference: PairedDifference
    adjusted_p: float


def backbone_rows(sweep: SweepResults) -> list[BackboneRow]:
    """Return the gain under every way of training the encoders, corrected over these rows; none for other spaces."""
    if sweep.space != FINE_TUNING:
        return []
    pairs = [(words, prefix + sweep.headline, prefix + sweep.baseline) for prefix, words in TRAINED.items()]
    pairs.append(("text encoder too, against frozen", sweep.headline + TEXT, sweep.headline))
    rows = []
    for condition in sweep.conditions:
        for words, name, against in pairs:
            arm, other = sweep.arm(name, condition), sweep.arm(against, condition)
            difference = shared_difference(arm.test, other.test) if arm and other else None
            if arm and other and difference is not None:
                means = spread(list(arm.test.values())), spread(list(other.test.values()))
                rows.append(BackboneRow(condition, words, name, against, *means, difference, math.nan))
    adjusted = holm({str(index): row.difference.p_value for index, row in enumerate(rows)})
    return [replace(row, adjusted_p=adjusted[str(index)]) for index, row in enumerate(rows)]
