"""Subsets of auxiliary corpora in space modalities: what each gains, and what adding one more corpus changes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from uml_core.evaluation.statistics import PairedDifference, holm
from uml_core.reporting.collect import MODALITIES, Condition, SweepResults
from uml_core.reporting.tables import ArmRow, arm_rows, shared_difference


@dataclass(frozen=True)
class SubsetRow:
    """One arm: which corpora take part, whether its head starts from one of them, and how it does."""

    corpora: frozenset[str]
    initialised: bool
    result: ArmRow


@dataclass(frozen=True)
class AdditionRow:
    """One more corpus added to a subset: the paired difference in test accuracy, heads at random on both sides."""

    condition: Condition
    added: str
    to: str  # an arm; the baseline is no auxiliary corpus at all
    difference: PairedDifference
    adjusted_p: float


def subset_rows(sweep: SweepResults) -> list[SubsetRow]:
    """Return every arm of space modalities with its corpora; none for other spaces."""
    if sweep.space != MODALITIES:
        return []
    return [
        SubsetRow(_corpora_of(row.arm, sweep), row.arm.endswith("_init"), row)
        for row in arm_rows(sweep)
        if row.test is not None
    ]


def addition_rows(sweep: SweepResults) -> list[AdditionRow]:
    """Compare each subset with the same subset and one corpus more; p values are corrected over all these rows."""
    if sweep.space != MODALITIES:
        return []
    at_random = {_corpora_of(arm, sweep): arm for arm in sweep.arm_names() if not arm.endswith("_init")}
    rows = []
    for condition in sweep.conditions:
        for corpora, arm in at_random.items():
            for added in sorted(set(sweep.auxiliaries) - corpora):
                smaller, larger = sweep.arm(arm, condition), sweep.arm(at_random.get(corpora | {added}, ""), condition)
                difference = shared_difference(larger.test, smaller.test) if larger and smaller else None
                if difference is not None:
                    rows.append(AdditionRow(condition, added, arm, difference, math.nan))
    adjusted = holm({str(index): row.difference.p_value for index, row in enumerate(rows)})
    return [replace(row, adjusted_p=adjusted[str(index)]) for index, row in enumerate(rows)]


def _corpora_of(arm: str, sweep: SweepResults) -> frozenset[str]:
    return frozenset() if arm == sweep.baseline else frozenset(arm.removesuffix("_init").split("+"))
