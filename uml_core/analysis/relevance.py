"""Will an auxiliary corpus help the target? Predicted from embeddings, in closed form, before any training.

In: the target's labelled rows other than test, and the auxiliary corpora's. Out: one `Relevance` per auxiliary corpus,
and a verdict.

**Predicted gain.** In each of several draws the shots are taken from the target's rows, and the rest is left out to
judge. Fitted to the shots are the head whose prior this corpus writes (`fit_prior_head`) and the alternatives: ridge
and logistic regression on the target alone, and the untrained zero-shot head where widths agree. The gain is the
difference of hits on left-out rows to the alternative that is best over all draws.

**Labels that would settle it.** Of normal paired differences with the standard deviation that left-out rows show, as
many rows as tell the predicted gain with 80 % power from 0 or from `MARGIN`, whichever is farther:
n = ((1.96 + 0.84) · deviation / distance)², divided by the classes, on top of the shots.

Shape legend: N rows, D embedding width, C classes, V rows left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from uml_core.analysis.alignment import cka
from uml_core.data.labelled_rows import LabelledRows
from uml_core.data.subsets import rows_by_class
from uml_core.data.training_data import TrainingData
from uml_core.models.closed_form.bridge import over_bridges
from uml_core.models.closed_form.bridged_data import bridge_of
from uml_core.models.closed_form.discriminant import prior_of_rows
from uml_core.models.closed_form.prior_baselines import logistic_head, zero_shot_head
from uml_core.models.closed_form.prior_gates import MIN_CLASSES
from uml_core.models.closed_form.prior_head import PriorHead, fit_prior_head
from uml_core.models.closed_form.prior_model import ClassPrior, Codes, unit_rows
from uml_core.models.closed_form.prior_verdict import CONFIDENCE, Gain
from uml_core.models.closed_form.row_space import Array, have_equal_lengths

Word = Literal["helps", "neutral", "harms", "not enough evidence"]

MAX_LEFT_OUT_ROWS = 1000  # of a draw: 1.6 points of standard error at most, and draws are averaged
MAX_LOGISTIC = 20_000  # train rows × classes up to which logistic regression takes about a second a draw
ALONE = ("ridge", "discriminant", "logistic")
MARGIN = 0.01  # a gain or harm below it is none
POWER = 0.8
# Of the calibration's corpora without controls (docs/measured.md): the mean gain where widths agree and where they do
# not, and the share that gained nothing.
TRIVIAL_GAIN, NEUTRAL_SHARE = {True: 0.003, False: 0.006}, 0.84


@dataclass(frozen=True)
class Relevance:
    """What the labelled rows say of one auxiliary corpus: accuracies and gains on left-out rows, in [−1, 1]."""

    corpus: str
    rows: int
    covered_classes: int
    num_classes: int
    own_classes: int  # of the corpus, that the target lacks
    same_width: bool
    aligned: bool | None  # whether its space is the target's; None where the widths differ
    accuracies: dict[str, float]  # "prior", and of each alternative
    best_alternative: str
    gain: Gain  # of the prior head over the best alternative
    worth: Gain  # of the prior head over the same head without the corpus, which is ridge
    takes_part: float  # the share of draws in which its true class names beat permuted ones
    left_out_rows: int  # different ones, over all draws
    settled_at: int | None  # rows a class to judge by; None where the word stands, or no label could settle it

    @property
    def verdict(self) -> tuple[Word, str]:
        """Whether the head with the corpus's prior is likely to beat every alternative, and why."""
        best = self.best_alternative.replace("_", "-")
        if self.covered_classes < MIN_CLASSES:
            return "not enough evidence", f"{self.covered_classes} common classes are too few to tell"
        if not self.takes_part:
            return "neutral", "its true class names do not beat permuted ones, so it takes no part"
        if self.gain.low > 0 and self.gain.mean >= MARGIN:
            return "helps", f"above {best} on rows left out"
        if self.worth.high < 0 and self.worth.mean <= -MARGIN:
            return "harms", "below the same head without it on rows left out"
        if self.gain.high <= MARGIN:
            return "neutral", f"no gain over {best} worth having"
        return "not enough evidence", (
            f"about {self.settled_at} labelled rows a class beside the shots would settle it"
        )

    @property
    def alone(self) -> tuple[str, float]:
        """The best that needs no auxiliary corpus, and its accuracy."""
        return max(
            ((name, self.accuracies[name]) for name in ALONE if name in self.accuracies), key=lambda each: each[1]
        )

    @property
    def trivial_gain(self) -> float:
        """What would be predicted of a corpus of this width without looking at it."""
        return TRIVIAL_GAIN[self.same_width]

    @property
    def zero_shot_first(self) -> bool:
        """Whether the corpus's prototypes, untrained, are the best that needs no training with it."""
        return bool(self.aligned) and self.best_alternative == "zero_shot"


@dataclass(frozen=True)
class Draw:
    """A draw of the shots, and which of the rows left out the target alone gets right."""

    data: TrainingData
    normalize: bool
    val: Array  # (V, D)
    val_rows: npt.NDArray[np.int64]  # of the target's table (V,)
    val_labels: Codes  # (V,)
    alone: dict[str, Array]  # hits (V,) of "ridge", and of "logistic" where it takes little time

    @classmethod
    def from_data(cls, data: TrainingData, *, normalize: bool = False) -> Draw:
        """Fit the target alone and judge it on validation rows; `normalize` is model.normalize."""
        rows, val, num_classes = data.labelled, data.val, len(data.classes)
        normalize = normalize or have_equal_lengths(rows.gathered())
        if len(val) > MAX_LEFT_OUT_ROWS:
            val = _some(val, np.sort(np.random.default_rng(0).choice(len(val), MAX_LEFT_OUT_ROWS, replace=False)))
        train_ND, val_VD = _gathered(rows, normalize), _gathered(val, normalize)
        alone = {
            "ridge": fit_prior_head(train_ND, rows.labels, num_classes, discriminates=False).logits(val_VD),
            "discriminant": fit_prior_head(train_ND, rows.labels, num_classes).logits(val_VD),
        }
        if len(rows) * num_classes <= MAX_LOGISTIC:
            alone["logistic"] = _logistic_logits(train_ND, rows.labels, num_classes, val_VD)
        return cls(
            data=data,
            normalize=normalize,
            val=val_VD,
            val_rows=val.rows,
            val_labels=val.labels,
            alone={name: _hits(logits_VC, val.labels) for name, logits_VC in alone.items()},
        )

    def prior_of(self, corpus: str) -> ClassPrior:
        rows = self.data.train[corpus]
        num_classes, dim = len(self.data.classes), self.val.shape[1]
        return prior_of_rows(corpus, _gathered(rows, self.normalize), rows.labels, num_classes, dim=dim)

    def with_prior(self, prior: ClassPrior) -> tuple[PriorHead, dict[str, Array]]:
        """The head whose prior a corpus writes, and hits (V,) of it and of everything that it is to beat."""
        rows = self.data.labelled
        over, _ = over_bridges([prior], [bridge_of(each) for each in self.data.bridges])
        train_ND, num_classes = _gathered(rows, self.normalize), len(self.data.classes)
        head = fit_prior_head(train_ND, rows.labels, num_classes, [prior, *over])
        hits = {**self.alone, "prior": _hits(head.logits(self.val), self.val_labels)}
        if prior.prototypes.shape[1] == self.val.shape[1]:
            weight_DC, bias_C = zero_shot_head(prior)
            hits["zero_shot"] = _hits(self.val @ weight_DC + bias_C, self.val_labels)
        return head, hits


def redrawn(data: TrainingData, pool: LabelledRows, *, shots: int, seed: int) -> TrainingData:
    """The data with so many rows a class of a pool as train rows, and all others of the pool as validation.

    A class with fewer rows leaves one out, if it has two.
    """
    orders = rows_by_class(pool.labels, np.arange(len(pool)), seed=seed).values()
    counts = [max(1, min(shots, len(order) - 1)) for order in orders]
    drawn, left = (
        _some(pool, np.sort(np.concatenate(parts)))
        for parts in (
            [order[:count] for order, count in zip(orders, counts, strict=True)],
            [order[count:] for order, count in zip(orders, counts, strict=True)],
        )
    )
    return replace(data, train={**data.train, data.target: drawn}, val=left)


def labelled_pool(data: TrainingData) -> LabelledRows:
    """The target's labelled rows other than test."""
    parts = (data.labelled, data.val)
    rows, labels = (np.concatenate([getattr(part, name) for part in parts]) for name in ("rows", "labels"))
    return LabelledRows(data.labelled.embeddings, rows, labels)


def relevance(draws: Sequence[Draw], corpus: str) -> Relevance:
    """Predict what one auxiliary corpus is worth to the target, averaged over draws of its shots."""
    data = draws[0].data
    fitted = [draw.with_prior(prior) for draw, prior in zip(draws, _priors(draws, corpus), strict=True)]
    heads, hits = [head for head, _ in fitted], [right for _, right in fitted]
    val_rows = [draw.val_rows for draw in draws]
    accuracies = {name: float(np.mean(np.concatenate([each[name] for each in hits]))) for name in hits[0]}
    best = max((name for name in accuracies if name != "prior"), key=lambda name: accuracies[name])
    differences = [each["prior"] - each[best] for each in hits]
    aligned = [any((gate.corpus, gate.role) == (corpus, "mean") and gate.believed for gate in h.gates) for h in heads]
    found = Relevance(
        corpus=corpus,
        rows=len(data.train[corpus]),
        covered_classes=len(np.unique(data.train[corpus].labels)),
        num_classes=len(data.classes),
        own_classes=len(set(data.dropped[corpus]) - {""}),
        same_width="zero_shot" in accuracies,
        aligned=bool(np.mean(aligned) > 0.5) if "zero_shot" in accuracies else None,
        accuracies=accuracies,
        best_alternative=best,
        gain=_gain(differences, val_rows),
        worth=_gain([each["prior"] - each["discriminant"] for each in hits], val_rows),
        takes_part=float(np.mean([head.kind in ("prior", "zero_shot") for head in heads])),
        left_out_rows=len(np.unique(np.concatenate(val_rows))),
        settled_at=None,
    )
    if found.verdict[0] != "not enough evidence" or found.covered_classes < MIN_CLASSES:
        return found
    return replace(found, settled_at=_rows_to_settle(differences, val_rows, len(data.classes)))


def redundancy(data: TrainingData, one: str, other: str) -> float | None:
    """The unbiased linear CKA of two auxiliary corpora's prototypes; None for too few common classes.

    About 0: they place the classes independently. 1: the second says of the classes what the first does.
    """
    first, second = (
        ClassPrior.from_rows(name, _gathered(data.train[name], False), data.train[name].labels, len(data.classes))
        for name in (one, other)
    )
    both_C = first.covered & second.covered
    if both_C.sum() < MIN_CLASSES:
        return None
    value = cka(first.prototypes[both_C], second.prototypes[both_C])
    return None if math.isnan(value) else value


def _priors(draws: Sequence[Draw], corpus: str) -> list[ClassPrior]:
    """Of every draw, computed anew only where a draw has other rows of the corpus."""
    priors: list[ClassPrior] = []
    for draw in draws:
        rows, before = draw.data.train[corpus], draws[max(len(priors) - 1, 0)].data.train[corpus]
        is_same = rows.embeddings is before.embeddings and all(
            np.array_equal(getattr(rows, name), getattr(before, name)) for name in ("rows", "labels")
        )
        priors.append(priors[-1] if priors and is_same else draw.prior_of(corpus))
    return priors


def _some(rows: LabelledRows, picked: npt.NDArray[np.int64]) -> LabelledRows:
    return replace(rows, rows=rows.rows[picked], labels=rows.labels[picked])


def _gathered(rows: LabelledRows, normalize: bool) -> Array:
    values: Array = rows.gathered().astype(np.float64)
    return unit_rows(values) if normalize else values


def _hits(logits_VC: Array, labels_V: Codes) -> Array:
    hits_V: Array = (logits_VC.argmax(axis=1) == labels_V).astype(np.float64)
    return hits_V


def _logistic_logits(train_ND: Array, labels_N: Codes, num_classes: int, val_VD: Array) -> Array:
    """Logits (V, C) of logistic regression, fitted in the span of the rows, where its weights lie anyway."""
    mean_D = train_ND.mean(axis=0)
    _, _, axes_RD = np.linalg.svd(train_ND - mean_D, full_matrices=False)
    weight_RC, bias_C = logistic_head((train_ND - mean_D) @ axes_RD.T, labels_N, num_classes)
    logits_VC: Array = (val_VD - mean_D) @ axes_RD.T @ weight_RC + bias_C
    return logits_VC


def _gain(differences: Sequence[Array], rows: Sequence[npt.NDArray[np.int64]]) -> Gain:
    """The mean difference with its 95 % t interval, clustered both by draw and by row: draws share rows."""
    difference_M = np.concatenate(differences)
    mean = float(difference_M.mean())
    draw_M = np.repeat(np.arange(len(rows)), [len(each) for each in rows])
    _, row_M = np.unique(np.concatenate(rows), return_inverse=True)
    by_row, by_draw, by_both = (
        _variance(difference_M - mean, codes_M) for codes_M in (row_M, draw_M, np.arange(len(difference_M)))
    )
    num_rows, num_draws = int(row_M.max()) + 1, len(rows)
    if num_rows < 2:
        return Gain(mean, -1.0, 1.0)
    variance = by_row if num_draws == 1 else max(by_row, by_draw, by_row + by_draw - by_both)
    freedom = num_rows - 1 if num_draws == 1 else min(num_rows, num_draws) - 1
    half = max(float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(variance), 1 / num_rows)
    return Gain(mean, max(mean - half, -1.0), min(mean + half, 1.0))


def _variance(deviations_M: Array, clusters_M: npt.NDArray[np.int64]) -> float:
    """Of their mean, where those of one cluster depend on each other."""
    sums = np.bincount(clusters_M, weights=deviations_M)
    return float((sums**2).sum()) * len(sums) / max(len(sums) - 1, 1) / len(deviations_M) ** 2


def _rows_to_settle(differences: Sequence[Array], rows: Sequence[npt.NDArray[np.int64]], num_classes: int) -> int:
    """Rows a class, left out, that would tell the gain from 0 or from `MARGIN`."""
    _, row_M = np.unique(np.concatenate(rows), return_inverse=True)
    mean_V = np.bincount(row_M, weights=np.concatenate(differences)) / np.bincount(row_M)
    deviation, mean = float(mean_V.std()), float(np.concatenate(differences).mean())
    distance = max(mean, MARGIN - mean)
    quantiles = float(stats.norm.ppf((1 + CONFIDENCE) / 2) + stats.norm.ppf(POWER))
    return math.ceil(max((quantiles * deviation / distance) ** 2, 1 / MARGIN) / num_classes)
