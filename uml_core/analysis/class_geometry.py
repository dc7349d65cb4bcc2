"""How two corpora place the same classes: class means, their alignment, and how far one's means predict the other's.

In: the labelled rows of a target and of an auxiliary corpus. Out: measures of the C class means. They come with their
values under permuted classes (`NullTest`), because class means of anything align: C points in more than C dimensions.

Shape legend: N rows, D and E embedding widths, C classes, P permutations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from uml_core.analysis.alignment import mutual_knn
from uml_core.data.labelled_rows import BLOCK_ROWS, LabelledRows
from uml_core.data.training_data import TrainingData

Array = npt.NDArray[np.float64]
Order = npt.NDArray[np.int64]

MAP_RIDGE = 0.3  # of the map between class means, in units of their mean squared length
SMALLEST_SHARE = 0.05  # of the variance of class means: what no map is believed to leave less of
TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class NullTest:
    """A measure, its mean under permuted classes, and the share of permutations that reach it."""

    value: float
    null: float
    p_value: float

    @classmethod
    def from_values(cls, values_P: Array) -> NullTest:
        """Compare the first value with the others: p = (1 + those that reach it) / (1 + how many)."""
        value, null = float(values_P[0]), values_P[1:]
        reached = int((null >= value - 1e-12).sum())
        return cls(value, float(null.mean()), (1 + reached) / (1 + len(null)))

    @property
    def excess(self) -> float:
        """The measure less what permuted classes give."""
        return self.value - self.null


@dataclass(frozen=True)
class ClassMeans:
    """Each class's mean embedding, zeros where it has no rows, and its number of rows."""

    means: Array  # (C, D)
    counts: npt.NDArray[np.int64]  # (C,)

    @classmethod
    def from_rows(cls, rows: LabelledRows, num_classes: int) -> ClassMeans:
        """Average the rows of each class, in float64."""
        sums_CD = np.zeros((num_classes, rows.dim))
        for embeddings_ND, labels_N in rows.blocks(BLOCK_ROWS):
            sums_CD += class_sums(embeddings_ND, labels_N, num_classes)
        counts_C = np.bincount(rows.labels, minlength=num_classes)
        return cls(sums_CD / np.maximum(counts_C, 1)[:, None], counts_C)

    @property
    def has_rows(self) -> npt.NDArray[np.bool_]:
        """Which classes have rows (C,)."""
        return self.counts > 0

    def unit(self) -> Array:
        """The means at unit length, as a head starts at them; zeros stay zeros."""
        unit_CD: Array = self.means / np.maximum(np.linalg.norm(self.means, axis=1, keepdims=True), TINY)
        return unit_CD


def class_sums(rows_ND: npt.NDArray[np.floating], labels_N: npt.NDArray[np.int64], num_classes: int) -> Array:
    """The sum of each class's rows (C, D), in float64."""
    sums_CD = torch.zeros(num_classes, rows_ND.shape[1], dtype=torch.float64)
    sums_CD.index_add_(0, torch.from_numpy(np.ascontiguousarray(labels_N)), torch.from_numpy(rows_ND).double())
    return sums_CD.numpy()


def orders_of(num_classes: int, permutations: int) -> list[Order]:
    """The classes in their own order, then in seeded random ones (1 + P of (C,))."""
    rng = np.random.default_rng(0)
    return [np.arange(num_classes), *(rng.permutation(num_classes) for _ in range(permutations))]


@dataclass(frozen=True)
class ClassGeometry:
    """What the class means say that both corpora have, and how well the target's are known."""

    target_gram: Array  # (C, C) of the centred class means
    auxiliary_gram: Array  # (C, C)
    within: float  # variance of a target row about its class mean, summed over directions
    mean_inverse_count: float  # of the target rows behind a class mean
    shots: float  # train rows per class

    @classmethod
    def from_data(cls, data: TrainingData, auxiliary: ClassMeans) -> ClassGeometry:
        """Use the labelled rows that a run sees: train and validation, never test."""
        num_classes, train = len(data.classes), data.train[data.target]
        seen = LabelledRows(
            train.embeddings,
            np.concatenate([train.rows, data.val.rows]),
            np.concatenate([train.labels, data.val.labels]),
        )
        target = ClassMeans.from_rows(seen, num_classes)
        has_C = auxiliary.has_rows & target.has_rows
        return cls(
            _centred_gram(target.means[has_C]),
            _centred_gram(auxiliary.unit()[has_C]),
            _variance_within(seen, target),
            float((1 / target.counts[has_C]).mean()),
            len(train) / num_classes,
        )

    @property
    def num_classes(self) -> int:
        return len(self.target_gram)

    def neighbours(self) -> float:
        """Mutual k-NN of the class means less chance, k a quarter of the classes and at most 10."""
        k = max(1, min(10, self.num_classes // 4))
        # A Gram matrix's square root stands for the means: the same angles in at most C dimensions.
        return mutual_knn(_root(self.target_gram), _root(self.auxiliary_gram), k=k) - k / (self.num_classes - 1)

    def alignments(self, permutations: int) -> Array:
        """Linear CKA (biased) of the class means, then under each permutation of auxiliary classes (1 + P,)."""
        orders = orders_of(self.num_classes, permutations)
        norm = max(float(np.linalg.norm(self.target_gram) * np.linalg.norm(self.auxiliary_gram)), TINY)
        values = [
            float((self.target_gram * self.auxiliary_gram[np.ix_(order, order)]).sum()) / norm for order in orders
        ]
        return np.array(values)

    def agreements(self, permutations: int) -> Array:
        """The share of the target's class means that the best linear map explains, then permuted (1 + P,).

        1 − (squared error of ridge regression on classes left out) / (that of the mean alone); below 0 it misleads.
        """
        mapped_CC, prior = self._left_out(), self._prior()
        orders = orders_of(self.num_classes, permutations)
        grams = (self.target_gram[np.ix_(order, order)] for order in orders)
        return np.array([1 - float(((mapped_CC @ gram_CC) * mapped_CC).sum()) / prior for gram_CC in grams])

    def information_gain(self, explained_share: float) -> float:
        """The nats about a class mean, per direction, that a map explaining a share of it adds to the shots.

        ½ log((1/τ² + k/σ²) / (1/s² + k/σ²)): s² the variance of class means, τ² what the map leaves of it, σ² within
        classes, k shots, all summed over directions; the error of the means themselves is taken off. The sum of
        information over modalities (theorem 1 of arXiv 2510.08492), with the auxiliary means as a prior.
        """
        observed = self._prior() / self.num_classes
        prior = max(observed - self.within * self.mean_inverse_count, SMALLEST_SHARE * observed, TINY)
        left = max(prior - max(0.0, explained_share) * observed, SMALLEST_SHARE * prior)
        known = self.shots / max(self.within, TINY)
        return 0.5 * math.log((1 / left + known) / (1 / prior + known))

    def _left_out(self) -> Array:
        """R (C, C): row c of R m is the error on class c of the ridge map fitted without it (closed form)."""
        size = self.num_classes
        ridge = max(MAP_RIDGE * float(np.trace(self.auxiliary_gram)) / size, TINY)
        hat_CC = self.auxiliary_gram @ np.linalg.inv(self.auxiliary_gram + ridge * np.eye(size)) + 1 / size
        left_out_CC: Array = (np.eye(size) - hat_CC) / (1 - np.diag(hat_CC))[:, None]
        return left_out_CC

    def _prior(self) -> float:
        """The summed squared error of predicting a class mean by the mean of the others."""
        return max(float(np.trace(self.target_gram)) * (self.num_classes / (self.num_classes - 1)) ** 2, TINY)


def _centred_gram(means_CD: Array) -> Array:
    centred_CD = means_CD - means_CD.mean(axis=0)
    gram_CC: Array = centred_CD @ centred_CD.T
    return gram_CC


def _variance_within(rows: LabelledRows, means: ClassMeans) -> float:
    """The squared deviations from class means, summed over directions, per degree of freedom."""
    squares = 0.0
    for embeddings_ND, labels_N in rows.blocks(BLOCK_ROWS):
        squares += float(((embeddings_ND - means.means[labels_N]) ** 2).sum())
    return squares / max(1, len(rows) - int(means.has_rows.sum()))


def _root(gram_CC: Array) -> Array:
    values, vectors_CC = np.linalg.eigh(gram_CC)
    root_CC: Array = vectors_CC * np.sqrt(np.maximum(values, 0.0))
    return root_CC
