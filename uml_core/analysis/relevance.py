"""Will an auxiliary corpus help the target? Estimated in closed form from embeddings, before any training.

In: the `TrainingData` of several draws of the shots (train and validation rows; test rows are never read). Out: one
`Relevance` per auxiliary corpus, and a verdict.

**Predicted gain.** What text initialisation does has a closed form in the limit of small steps. The logits W P e of a
model whose head W starts at the class means of the auxiliary corpus, and whose projection P starts at random, learn
with the kernel (e · e') (T + ι I): T = W Wᵀ says which classes lie close together in the auxiliary corpus, and the
identity is what the head learns by itself. With a random head T is an identity, too. So the prediction is the accuracy
on validation rows of ridge regression from target embeddings to class indicators whose logits are multiplied by
T + ι I, less the accuracy without. Where both widths are equal the model has no projection: there it is ridge
regression on the rows of both corpora together. No constant here is fitted to measured gains.

**Null.** Everything is measured again with the auxiliary classes permuted: what is left is what any corpus of this size
and shape would give.

Shape legend: N rows, D embedding width, C classes, V validation rows, P orders of the classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.linalg import solve

from uml_core.analysis.alignment import cka
from uml_core.analysis.class_geometry import (
    TINY,
    Array,
    ClassGeometry,
    ClassMeans,
    NullTest,
    Order,
    class_sums,
    orders_of,
)
from uml_core.data.labelled_rows import BLOCK_ROWS, LabelledRows, column_moments
from uml_core.data.training_data import TrainingData

Word = Literal["likely", "unlikely", "unclear"]

PERMUTATIONS = 199  # the smallest p is 1/200
MIN_CLASSES = 4  # with fewer, class means always align and permutations are too few
MAX_VALIDATION_ROWS = 1000  # of a draw: 1.6 points of standard error at most, and draws are averaged
RIDGE = 1.0  # of the target's regression, in units of the mean squared length of its rows
IDENTITY_SHARE = 0.3  # ι: what the head learns by itself, in units of T's mean diagonal
SIGNIFICANT = 0.05
CONFIDENCE = 0.95


@dataclass(frozen=True)
class PredictedGain:
    """Accuracy of the target alone, and the predicted difference, with an interval over validation rows."""

    baseline: float
    mean: float
    low: float
    high: float
    test: NullTest  # against permuted classes


@dataclass(frozen=True)
class Relevance:
    """What the embeddings say of one auxiliary corpus: accuracies and gains in [−1, 1], information in nats."""

    corpus: str
    rows: int
    covered_classes: int
    num_classes: int
    same_width: bool  # no projection between the corpora: their coordinates are taken for the same
    gain: PredictedGain
    alignment: NullTest | None = None  # linear CKA of class means; None, as below, for too few classes
    agreement: NullTest | None = None  # share of left-out class means that the best linear map explains
    neighbours: float | None = None  # mutual k-NN of class means, less chance
    information_gain: float | None = None  # about a class mean, per direction, beyond the shots and permuted classes

    @property
    def verdict(self) -> tuple[Word, str]:
        """Whether training with the corpus is likely to help, and why; thresholds at 0 and p = 0.05."""
        gain = self.gain
        if self.covered_classes < MIN_CLASSES:
            return "unclear", f"{self.covered_classes} common classes are too few to tell"
        if gain.mean <= 0:
            if self.same_width and gain.high < 0:
                return "unlikely", "equal widths leave out the projection, and its coordinates are not the target's"
            if self.alignment is not None and self.alignment.p_value > SIGNIFICANT:
                return "unlikely", "its classes lie no more like the target's than permuted ones"
            return "unlikely", "its classes lie a little like the target's, but too little for these shots"
        if gain.test.p_value > SIGNIFICANT:
            return "unclear", f"permuted classes do as well (p = {gain.test.p_value:.2f})"
        if gain.low <= 0:
            return "unclear", "the validation rows are too few to tell it from 0"
        return "likely", f"above 0 on validation rows, and above permuted classes (p = {gain.test.p_value:.3f})"


@dataclass(frozen=True)
class Draw:
    """What a draw of the shots says without any auxiliary corpus: the target's own logits on its validation rows."""

    data: TrainingData
    mean: Array  # of the train rows (D,), taken off all rows
    penalty: float
    val: Array  # (V, D)
    val_rows: npt.NDArray[np.int64]  # of the target's table (V,)
    val_labels: npt.NDArray[np.int64]  # (V,)
    logits: Array  # (V, C)

    @classmethod
    def from_data(cls, data: TrainingData) -> Draw:
        """Fit the target alone."""
        train = data.train[data.target]
        picked = np.arange(len(data.val))
        if len(picked) > MAX_VALIDATION_ROWS:
            picked = np.sort(np.random.default_rng(0).choice(len(picked), MAX_VALIDATION_ROWS, replace=False))
        mean_D, variance_D = column_moments(train)
        penalty = max(RIDGE * float(variance_D.sum()), TINY)
        val_VD = data.val.embeddings[data.val.rows[picked]] - mean_D
        head_DC = ridge_head([(train, 1.0)], len(data.classes), mean=mean_D, penalty=penalty)
        return cls(data, mean_D, penalty, val_VD, data.val.rows[picked], data.val.labels[picked], val_VD @ head_DC)

    def correct_with(
        self, auxiliary: LabelledRows, means: ClassMeans, orders: Sequence[Order]
    ) -> Iterator[npt.NDArray[np.bool_]]:
        """Yield which validation rows are right with the auxiliary classes in each order (V,)."""
        if auxiliary.dim == len(self.mean):
            own_VC, others_VC = self._joint_logits(auxiliary)
            for order in orders:
                yield (own_VC + others_VC[:, order]).argmax(axis=1) == self.val_labels
            return
        kernel_CC = class_similarity(means) + IDENTITY_SHARE * np.eye(len(self.data.classes))
        for order in orders:
            yield (self.logits @ kernel_CC[np.ix_(order, order)]).argmax(axis=1) == self.val_labels

    def _joint_logits(self, auxiliary: LabelledRows) -> tuple[Array, Array]:
        """What target and auxiliary rows each add to the logits (V, C) of one regression on both.

        Both corpora weigh the same in all, as in a step with batch ratio 1 and loss weight 1.
        """
        target, num_classes = self.data.train[self.data.target], len(self.data.classes)
        # Classes of their own for the auxiliary rows keep the two parts apart: the regression is linear in them.
        apart = LabelledRows(auxiliary.embeddings, auxiliary.rows, auxiliary.labels + num_classes)
        parts = [(target, 1.0), (apart, len(target) / len(auxiliary))]
        logits_VC = self.val @ ridge_head(parts, 2 * num_classes, mean=self.mean, penalty=self.penalty)
        return logits_VC[:, :num_classes], logits_VC[:, num_classes:]


def relevance(draws: Sequence[Draw], corpus: str, *, permutations: int = PERMUTATIONS) -> Relevance:
    """Estimate what one auxiliary corpus is worth to the target, averaged over draws of its shots.

    Args:
        draws: the same experiment under different split seeds.
        corpus: the auxiliary corpus.
        permutations: of its classes, for the null; seeded.
    """
    num_classes, rows = len(draws[0].data.classes), draws[0].data.train[corpus]
    means = [ClassMeans.from_rows(draw.data.train[corpus], num_classes) for draw in draws]
    geometry = [ClassGeometry.from_data(draw.data, mean) for draw, mean in zip(draws, means, strict=True)]
    covered = min(each.num_classes for each in geometry)  # an unrelated control is handed out anew in each draw
    shared: dict[str, Any] = {}
    if covered >= MIN_CLASSES:
        agreement = NullTest.from_values(np.mean([each.agreements(permutations) for each in geometry], axis=0))
        shared = {
            "alignment": NullTest.from_values(np.mean([each.alignments(permutations) for each in geometry], axis=0)),
            "agreement": agreement,
            "neighbours": float(np.mean([each.neighbours() for each in geometry])),
            "information_gain": float(np.mean([each.information_gain(agreement.excess) for each in geometry])),
        }
    return Relevance(
        corpus=corpus,
        rows=len(rows),
        covered_classes=covered,
        num_classes=num_classes,
        same_width=rows.dim == len(draws[0].mean),
        gain=_predicted_gain(draws, corpus, means, orders_of(num_classes, permutations)),
        **shared,
    )


def redundancy(data: TrainingData, one: str, other: str) -> float | None:
    """The unbiased linear CKA of two auxiliary corpora's class means; None for fewer than 4 common classes.

    About 0: they place the classes independently. 1: the second says of the classes what the first does.
    """
    first, second = (ClassMeans.from_rows(data.train[name], len(data.classes)) for name in (one, other))
    both_C = first.has_rows & second.has_rows
    if both_C.sum() < MIN_CLASSES:
        return None
    value = cka(first.unit()[both_C], second.unit()[both_C])
    return None if math.isnan(value) else value


def class_similarity(means: ClassMeans) -> Array:
    """The Gram matrix (C, C) of the head that a corpus initialises: unit class means, less their mean.

    Its mean diagonal is 1. Softmax does not see what all classes share, so the mean goes; a class without rows is like
    no other.
    """
    unit_CD, has_C = means.unit(), means.has_rows
    unit_CD[has_C] -= unit_CD[has_C].mean(axis=0)
    similarity_CC: Array = unit_CD @ unit_CD.T
    return similarity_CC / max(float(np.trace(similarity_CC)) / len(similarity_CC), TINY)


def ridge_head(parts: Sequence[tuple[LabelledRows, float]], num_classes: int, *, mean: Array, penalty: float) -> Array:
    """The ridge regression (D, C) from the rows of some corpora, each with a weight, to class indicators.

    Minimises Σ weight · |(e − mean)ᵀ W − indicator|² + penalty · |W|². The indicators are less 1/C, so that a class is
    not preferred. Rows are read in blocks.
    """
    gram_DD, sums_CD = penalty * np.eye(len(mean)), np.zeros((num_classes, len(mean)))
    for rows, weight in parts:
        for embeddings_ND, labels_N in rows.blocks(BLOCK_ROWS):
            centred_ND = embeddings_ND - mean
            gram_DD += weight * (centred_ND.T @ centred_ND)
            sums_CD += weight * class_sums(centred_ND, labels_N, num_classes)
    head_DC: Array = solve(gram_DD, (sums_CD - sums_CD.sum(axis=0) / num_classes).T, assume_a="pos")
    return head_DC


def _predicted_gain(
    draws: Sequence[Draw], corpus: str, means: Sequence[ClassMeans], orders: Sequence[Order]
) -> PredictedGain:
    gains_P = np.zeros(len(orders))
    alone, differences, rows = [], [], []
    for draw, mean in zip(draws, means, strict=True):
        correct_alone = draw.logits.argmax(axis=1) == draw.val_labels
        for index, correct in enumerate(draw.correct_with(draw.data.train[corpus], mean, orders)):
            if index == 0:
                differences.append(correct.astype(float) - correct_alone)
            gains_P[index] += (correct.mean() - correct_alone.mean()) / len(draws)
        alone.append(float(correct_alone.mean()))
        rows.append(draw.val_rows)
    half = _half_interval(np.concatenate(differences), np.concatenate(rows))
    mean_gain = float(gains_P[0])
    return PredictedGain(
        float(np.mean(alone)), mean_gain, mean_gain - half, mean_gain + half, NullTest.from_values(gains_P)
    )


def _half_interval(differences: Array, rows: npt.NDArray[np.int64]) -> float:
    """Half the 95 % t interval of the mean difference, clustered by row: draws share validation rows."""
    _, position = np.unique(rows, return_inverse=True)
    sums, num_rows = np.bincount(position, weights=differences - differences.mean()), int(position.max()) + 1
    if num_rows < 2:
        return 1.0
    error = math.sqrt(float((sums**2).sum()) * num_rows / (num_rows - 1)) / len(differences)
    return min(1.0, float(stats.t.ppf((1 + CONFIDENCE) / 2, num_rows - 1)) * error)
