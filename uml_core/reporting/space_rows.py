"""Tables of one space: subsets of corpora (modalities), amounts of sentences (text), trained encoders (finetune)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from uml_core.evaluation.statistics import PairedDifference, Spread, holm, spread
from uml_core.reporting.collect import FINE_TUNING, MODALITIES, TEXT, Condition, SweepResults, condition_of
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


TRAINED = {"frozen_": "nothing", "partial_": "its last blocks", "lora_": "low-rank adapters in it", "": "all of it"}


TRAINED_TEXT = "_trained_text"


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
    pairs.append(("text encoder too, against frozen", sweep.headline + TRAINED_TEXT, sweep.headline))
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
