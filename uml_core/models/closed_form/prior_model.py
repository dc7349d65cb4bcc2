"""What the search over scales asks of a labelled corpus and its auxiliary corpora: evidence, left-out loss, heads.

In: rows with labels, and the class prototypes of some corpora. Out, at any `Point` (penalty, covariance over classes,
scales of the means): the evidence, logits of left-out rows, and the head. docs/method.md, A head whose prior the
auxiliary corpora write, derives all of it.

Shape legend: N rows, D embedding width, E an auxiliary corpus's width, C classes, R rank of the rows, M means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from uml_core.data.row_statistics import RowStatistics
from uml_core.models.closed_form.row_space import Array, ClassBasis, LeftOut, LeftRows, RowSpace

Codes = npt.NDArray[np.int64]
MAX_LEFT_OUT = 400  # rows that a search leaves out; the final figures leave out every one
FEW_TEMPERATURE = 0.75  # where nothing can be left out, in units of the spread of wrong classes' logits


@dataclass(frozen=True)
class ClassPrior:
    """Where an auxiliary corpus places the classes: unit prototypes (C, E), zeros where it has no rows."""

    name: str
    prototypes: Array
    covered: npt.NDArray[np.bool_]  # (C,)
    # Heads trained on the corpus's rows, for rows less their mean: weights (E, C) and biases (C,).
    trained: tuple[tuple[Array, Array], ...] = ()
    explained: float = 1.0  # the share of the variance of class means that the prototypes can tell of

    @classmethod
    def from_rows(cls, name: str, rows: Array, labels: Codes, num_classes: int) -> ClassPrior:
        """The mean of each class's rows at unit length, at unit length."""
        sums_CE = np.zeros((num_classes, rows.shape[1]))
        np.add.at(sums_CE, labels, unit_rows(rows))
        return cls.from_sums(name, sums_CE, np.bincount(labels, minlength=num_classes))

    @classmethod
    def from_sums(cls, name: str, sums_CE: Array, counts_C: npt.NDArray[Any]) -> ClassPrior:
        """From the sum of each class's rows at unit length, and their number."""
        return cls(name, unit_rows(sums_CE), counts_C > 0)

    def centred(self, seen_C: npt.NDArray[np.bool_]) -> Array:
        """The prototypes less their mean over covered classes that the target has rows of."""
        basis_C = self.covered & seen_C if (self.covered & seen_C).any() else self.covered
        centred_CE = self.prototypes - self.prototypes[basis_C].mean(axis=0)
        return np.where(self.covered[:, None], centred_CE, 0.0)

    def gram(self, seen_C: npt.NDArray[np.bool_]) -> Array:
        """The cosines (C, C) between the centred prototypes; 0 where the corpus has no rows."""
        unit_CE = unit_rows(self.centred(seen_C))
        gram_CC: Array = unit_CE @ unit_CE.T
        return gram_CC


@dataclass(frozen=True)
class Point:
    """One setting of what the evidence or left-out rows decide."""

    penalty: float  # λ in units of a row's mean squared length; inf leaves the mean alone
    classes: ClassBasis = field(default_factory=ClassBasis.identity)
    scales: tuple[float, ...] = ()  # one a mean
    share: float = 0.0  # of the Gram matrices in the covariance over classes; the rest is private


@dataclass(frozen=True)
class Mean:
    """A prior mean: a head (D, C) that was never trained, and how much of its raw bias to keep."""

    name: str
    head: Array
    bias: Array  # (C,) for rows less their mean
    projected: Array  # the logits in the eigenbasis of the rows (R, C)
    bias_share: float = 0.0  # β: with 1 the bias is that of raw geometry, with 0 none

    @classmethod
    def of_rows(cls, name: str, head: Array, bias: Array, space: RowSpace) -> Mean:
        """For the rows of a space."""
        return cls(name, head, bias, space.project_head(head))

    @classmethod
    def of_prototypes(cls, name: str, head: Array, bias_share: float, space: RowSpace) -> Mean:
        """Prototypes less their mean as a head."""
        raw_C: Array = space.mean @ head
        return replace(cls.of_rows(name, head, bias_share * raw_C, space), bias_share=bias_share)


@dataclass(frozen=True)
class Problem:
    """Labelled rows of the classes that have some, in closed form."""

    space: RowSpace
    labels: Codes  # (N,)
    num_classes: int
    means: tuple[Mean, ...] = ()

    @classmethod
    def from_statistics(cls, statistics: RowStatistics) -> Problem:
        """Of rows that were added up, some of each class. Only those that are kept can be left out."""
        space = RowSpace.from_statistics(statistics)
        problem = cls(space, statistics.kept_labels, len(statistics.counts))
        centred_CD = statistics.sums - statistics.counts[:, None] * statistics.mean
        projected_RC = space.project_sums(centred_CD.T)
        vars(problem).update(mass=statistics.counts, class_sums=centred_CD, projected_labels=projected_RC)
        return problem

    @cached_property
    def indicators(self) -> Array:
        """One-hot labels (N, C)."""
        one_hot_NC: Array = np.eye(self.num_classes)[self.labels]
        return one_hot_NC

    @cached_property
    def mass(self) -> Array:
        """The weight of each class (C,)."""
        mass_C = np.zeros(self.num_classes)
        np.add.at(mass_C, self.labels, self.space.weights)
        return mass_C

    @cached_property
    def class_sums(self) -> Array:
        """Of the centred rows of each class (C, D)."""
        return (self.indicators * self.space.weights[:, None]).T @ self.space.centred

    @cached_property
    def class_share(self) -> Array:
        """The share of each class among the rows (C,)."""
        share_C: Array = self.mass / self.mass.sum()
        return share_C

    @cached_property
    def projected_labels(self) -> Array:
        """The labels in the rows' eigenbasis (R, C)."""
        return self.space.project(self.indicators)

    @cached_property
    def has_others(self) -> npt.NDArray[np.bool_]:
        """Which rows leave others of their class behind (N,)."""
        others: npt.NDArray[np.bool_] = self.mass[self.labels] > np.minimum(self.space.weights, 1.0) + 1e-9
        return others

    @cached_property
    def picked(self) -> Codes:
        """Rows that a search leaves out: of classes with others, at most `MAX_LEFT_OUT`."""
        rows = np.flatnonzero(self.has_others)
        if len(rows) > MAX_LEFT_OUT:
            rows = np.sort(np.random.default_rng(0).choice(rows, MAX_LEFT_OUT, replace=False))
        return rows

    @cached_property
    def unexplained(self) -> float:
        """What of the labels lies outside the span of the rows, as a sum of squares."""
        total = float((self.mass * (1 - self.class_share)).sum())
        return max(total - float((self.projected_labels**2).sum()), 1e-9 * total)

    def with_means(self, means: Sequence[Mean]) -> Problem:
        """The same rows under other prior means."""
        problem = Problem(self.space, self.labels, self.num_classes, tuple(means))
        kept = {name: value for name, value in vars(self).items() if name not in ("means", "search_rows")}
        vars(problem).update(kept)  # what was computed of the rows and labels alone
        if "search_rows" in vars(self):
            vars(problem)["search_rows"] = problem.with_mean_logits(self.search_rows)
        return problem

    def unfollowed(self, penalty: float, classes: ClassBasis) -> Array:
        """The precision of each direction's target (R, J) under the prior, in units of the noise's."""
        precision_RJ: Array = 1.0 - self.space.shrinkage(penalty, classes)
        return precision_RJ

    def best_scales(self, penalty: float, classes: ClassBasis) -> tuple[float, ...]:
        """The scales of the means with the largest evidence: generalised least squares, none below 0."""
        if not self.means:
            return ()
        root_RJ = np.sqrt(self.unfollowed(penalty, classes))
        columns = [(root_RJ * classes.rotate(mean.projected)).ravel() for mean in self.means]
        target = (root_RJ * classes.rotate(self.projected_labels)).ravel()
        design = np.stack(columns, axis=1)
        scales, _ = nnls(design.T @ design, design.T @ target)
        return tuple(float(scale) for scale in scales)

    def evidence(self, point: Point) -> float:
        """The log marginal likelihood per class of the labels, the noise's variance at its best.

        One label is one observation and not C of them, hence "per class".
        """
        classes = point.classes
        rotated_RJ = classes.rotate(self.projected_labels)
        for scale, mean in zip(point.scales, self.means, strict=True):
            rotated_RJ = rotated_RJ - scale * classes.rotate(mean.projected)
        precision_RJ = self.unfollowed(point.penalty, classes)
        num_columns = self.num_classes - 1 if classes.vectors is None else len(classes.values)
        repeats = num_columns / precision_RJ.shape[1]  # the identity keeps one column for all classes
        freedom = max(self.space.total_weight - 1, 1.0) * num_columns
        squares: float = float((precision_RJ * rotated_RJ**2).sum()) + self.unexplained
        log_determinant = repeats * float(np.log(precision_RJ).sum())
        log_evidence = 0.5 * log_determinant - 0.5 * freedom * math.log(squares / freedom)
        return float(log_evidence / max(num_columns, 1))

    def offset(self, point: Point) -> Array:
        """The raw bias of the means (C,), as far as the labelled rows leave them standing."""
        total_C = np.zeros(self.num_classes)
        for scale, mean in zip(point.scales, self.means, strict=True):
            squares_RJ = point.classes.rotate(mean.projected) ** 2
            left = float((self.unfollowed(point.penalty, point.classes) * squares_RJ).sum())
            standing = left / max(float(squares_RJ.sum()), 1e-300)
            total_C += scale * standing * mean.bias
        return total_C

    def left_rows(self, picked: Codes, precision: type[np.floating] = np.float64) -> LeftRows:
        """Rows to leave out one at a time; float32 is enough to search with."""
        if "search_rows" in vars(self) and precision is np.float32 and np.array_equal(picked, self.picked):
            return self.search_rows
        basis_nR = self.space.basis(picked, precision)
        rows = LeftRows(
            picked,
            basis_nR,
            basis_nR**2,
            removed=np.minimum(self.space.weights[picked], 1.0).astype(precision),
            indicators=self.indicators[picked].astype(precision),
            mean_logits=(),
        )
        return self.with_mean_logits(rows)

    def with_mean_logits(self, rows: LeftRows) -> LeftRows:
        """The same rows with the logits of every mean, which lie in the rows' span: its projection gives them."""
        precision = rows.basis.dtype
        return replace(rows, mean_logits=tuple(rows.basis @ mean.projected.astype(precision) for mean in self.means))

    @cached_property
    def search_rows(self) -> LeftRows:
        """The rows that a search leaves out."""
        return self.left_rows(self.picked, np.float32)

    def left_out_logits(self, point: Point, rows: LeftRows) -> Array:
        """Logits (n, C) of rows by heads fitted without them.

        A row's class keeps its weight: its other rows answer for the one left out. Without that every row would be
        judged by a head for which its own class is rarer than the others, and all training would look harmful.
        """
        labels_n, precision = self.labels[rows.picked], rows.basis.dtype
        prior_nC, projected_RC = np.zeros_like(rows.indicators), self.projected_labels
        for scale, mean, logits_nC in zip(point.scales, self.means, rows.mean_logits, strict=True):
            prior_nC += scale * logits_nC
            projected_RC = projected_RC - scale * mean.projected
        offset_C = self.offset(point).astype(precision)
        if math.isinf(point.penalty):
            return prior_nC + offset_C
        left = LeftOut.from_space(self.space, rows, penalty=point.penalty, classes=point.classes)
        prior_nC += left.predict(rows.indicators - prior_nC, projected_RC, self.class_share) + offset_C
        others_n = self.mass[labels_n].astype(precision) - rows.removed
        share_n = np.where(others_n > 1e-6, rows.removed / np.maximum(others_n, 1e-6), 0.0).astype(precision)
        own_nR = rows.basis * self.projected_labels.T[labels_n].astype(precision)
        prior_nC += share_n[:, None] * left.of_own_class(labels_n, own_nR, self.mass)
        return prior_nC

    def head(self, point: Point) -> tuple[Array, Array]:
        """Weight (D, C) and bias (C,) at a point."""
        weight_DC, projected_RC = np.zeros((self.space.centred.shape[1], self.num_classes)), self.projected_labels
        for scale, mean in zip(point.scales, self.means, strict=True):
            weight_DC = weight_DC + scale * mean.head
            projected_RC = projected_RC - scale * mean.projected
        if not math.isinf(point.penalty):
            weight_DC = weight_DC + self.space.ridge(projected_RC, point.penalty, point.classes)
        bias_C = self.offset(point) - self.space.mean @ weight_DC
        return weight_DC, bias_C if math.isinf(point.penalty) else bias_C + self.class_share

    def unjudged_temperature(self, point: Point) -> float:
        """Where no row can be left out, from the spread of the logits; for a head without means."""
        weight_DC, bias_C = self.head(point)
        logits_NC = (self.space.centred + self.space.mean) @ weight_DC + bias_C
        wrong = (logits_NC - logits_NC.mean(axis=1, keepdims=True))[self.indicators == 0]
        return FEW_TEMPERATURE * float(wrong.std()) or 1.0


def unit_rows(rows: Array) -> Array:
    """Rows at unit length; zeros stay zeros."""
    unit: Array = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit
