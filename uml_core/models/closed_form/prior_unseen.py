"""Classes without a row: their columns of the head, and the offset that lets them compete with the others.

In: a fitted problem and the priors of all classes. Out: weights and biases of all classes. The offset is set by holding
out classes that do have rows, a fifth at a time, never by rows of classes without any.

Shape legend: N rows, D embedding width, C classes, S classes that have rows, U classes that are held out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from uml_core.models.closed_form.prior_gates import SeenClasses
from uml_core.models.closed_form.prior_model import ClassPrior, Codes, Mean, Point, Problem
from uml_core.models.closed_form.row_space import Array, RowSpace

FOLDS = 5
OFFSETS = 101


@dataclass(frozen=True)
class Extension:
    """How a head of the classes that have rows becomes one of all classes."""

    classes: SeenClasses
    problem: Problem  # with its means
    point: Point
    grams: tuple[ClassPrior, ...]
    priors: tuple[ClassPrior, ...]

    def head(self) -> tuple[Array, Array]:
        """Weight (D, C) and bias (C,): columns without rows follow from the means, and from the others through K."""
        weight_DS, bias_S = self.problem.head(self.point)
        seen, num_classes, space = self.classes.seen, self.classes.num_classes, self.problem.space
        if len(seen) == num_classes:
            return weight_DS, bias_S
        by_name = {prior.name: prior for prior in self.priors}
        mean_DC, offset_C = np.zeros((len(weight_DS), num_classes)), np.zeros(num_classes)
        for scale, mean in zip(self.point.scales, self.problem.means, strict=True):
            head_DC = scale * by_name[mean.name].centred(self.classes.mask).T
            mean_DC, offset_C = mean_DC + head_DC, offset_C + mean.bias_share * (space.mean @ head_DC)
        weight_DC = mean_DC.copy()
        if self.grams:
            covariance_CC = self.classes.covariance(self.grams, self.point.share)
            carried_SC = np.linalg.solve(covariance_CC[np.ix_(seen, seen)], covariance_CC[seen])
            weight_DC += (weight_DS - mean_DC[:, seen]) @ carried_SC
        average = 0.0 if math.isinf(self.point.penalty) else 1.0 / len(seen)
        bias_C = offset_C - space.mean @ weight_DC + average
        weight_DC[:, seen], bias_C[seen] = weight_DS, bias_S
        return weight_DC, bias_C

    def offset(self) -> float:
        """What is added to the logits of classes without rows: what serves held-out classes and the others best.

        That is the harmonic mean of the two accuracies. 0 where no corpus says anything of the classes without rows.
        """
        num_seen = len(self.classes.seen)
        if not (self.grams or self.point.scales) or num_seen < 2 * FOLDS:
            return 0.0
        order = np.random.default_rng(0).permutation(num_seen)
        folds = [self._held_out(np.sort(fold)) for fold in np.array_split(order, FOLDS)]
        margins_n, right_n, held_n = (np.concatenate(parts) for parts in zip(*folds, strict=True))
        tried = np.quantile(margins_n, np.linspace(0, 1, OFFSETS))
        scores = []
        for offset in tried:
            held = float((right_n & (margins_n < offset))[held_n].mean())
            others = float((right_n & (margins_n >= offset))[~held_n].mean())
            scores.append(2 * held * others / max(held + others, 1e-12))
        return float(tried[int(np.argmax(scores))])

    def _held_out(self, fold: Codes) -> tuple[Array, npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """By a head without the classes of a fold: by how much the others' best logit is above the fold's, for every
        row; whether the best of the row's own side is right; whether the row is of the fold."""
        problem, num_seen = self.problem, len(self.classes.seen)
        kept = np.setdiff1d(np.arange(num_seen), fold)
        held_N = np.isin(problem.labels, fold)
        rows_ND = problem.space.centred + problem.space.mean
        space = RowSpace.from_rows(rows_ND[~held_N], problem.space.weights[~held_N])
        labels_n = np.searchsorted(kept, problem.labels[~held_N])
        classes = SeenClasses(Problem(space, labels_n, len(kept)), self.classes.seen[kept], self.classes.num_classes)
        smaller = classes.problem.with_means(self._means(classes))
        basis = classes.basis(self.grams, self.point.share) if self.grams else self.point.classes
        point = Point(self.point.penalty * problem.space.kept_share, basis, self.point.scales, self.point.share)
        weight_DC, bias_C = Extension(classes, smaller, point, self.grams, self.priors).head()
        logits_NS = (rows_ND @ weight_DC + bias_C)[:, self.classes.seen]
        if smaller.has_others.all():  # a row that the head was fitted to says nothing of new ones
            everyone = np.arange(len(labels_n))
            logits_NS[np.ix_(~held_N, kept)] = smaller.left_out_logits(point, smaller.left_rows(everyone))
        best_kept, best_fold = kept[logits_NS[:, kept].argmax(axis=1)], fold[logits_NS[:, fold].argmax(axis=1)]
        margin_N = logits_NS[:, kept].max(axis=1) - logits_NS[:, fold].max(axis=1)
        right_N: npt.NDArray[np.bool_] = np.where(held_N, best_fold, best_kept) == problem.labels
        return margin_N, right_N, held_N

    def _means(self, classes: SeenClasses) -> Sequence[Mean]:
        by_name = {prior.name: prior for prior in self.priors}
        return [
            Mean.of_prototypes(
                mean.name,
                by_name[mean.name].centred(classes.mask)[classes.seen].T,
                mean.bias_share,
                classes.problem.space,
            )
            for mean in self.problem.means
        ]
