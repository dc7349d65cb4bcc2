"""A linear discriminant in closed form: Gaussian classes of one covariance, whose means have a prior over classes.

In: labelled rows of which every class has some. Out, at a penalty and a covariance over classes: the head, and logits
of left-out rows that are exactly those of a refit. All of it is in the eigenbasis of the rows, so one decomposition
serves every penalty. docs/method.md, A head whose prior the auxiliary corpora write, derives it.

Shape legend: N rows, n rows that are left out, D embedding width, C classes, R rank of the rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from uml_core.data.row_statistics import RowStatistics
from uml_core.models.closed_form.prior_model import ClassPrior, Codes, Problem, unit_rows
from uml_core.models.closed_form.row_space import Array, ClassBasis, LeftRows, RowSpace

LEAST_SPREAD = 1e-3  # of class means
MOST_SHRUNK = 0.999  # of the scatter within classes, towards a multiple of the identity
AMOUNTS = (0.1, 0.3, 1.0, 10.0)  # of the identity's multiple beside another corpus's scatter


@dataclass(frozen=True)
class Discriminant:
    """The discriminants of some labelled rows."""

    problem: Problem

    @cached_property
    def standard_means(self) -> Array:
        """√n times each class's mean, in the rows' eigenbasis (R, C)."""
        means_RC: Array = self.problem.projected_labels / np.sqrt(self.problem.mass)
        return means_RC

    @cached_property
    def scatter_within(self) -> tuple[float, float]:
        """The traces of the scatter within classes and of its square."""
        values_R, means_RC = self.problem.space.values, self.standard_means
        between_CC = means_RC.T @ (values_R[:, None] * means_RC)
        trace = max(float(values_R.sum() - np.trace(between_CC)), 1e-9 * float(values_R.sum()))
        crossed = float(values_R**2 @ (means_RC**2).sum(axis=1))
        return trace, max(float((values_R**2).sum()) - 2.0 * crossed + float((between_CC**2).sum()), 1e-18 * trace**2)

    @cached_property
    def freedom(self) -> float:
        """How many directions within classes the rows tell of."""
        return self.problem.space.total_weight - len(self.problem.mass)

    @cached_property
    def spread(self) -> float:
        """τ², the variance of class means in units of the rows' variance within classes: analysis of variance."""
        mass_C, total = self.problem.mass, self.problem.space.total_weight
        variance = self.scatter_within[0] / self.freedom
        between = float(self.problem.space.values.sum()) - self.scatter_within[0]
        apart = (between - (len(mass_C) - 1) * variance) / (total - float(mass_C @ mass_C) / total)
        return max(apart / variance, LEAST_SPREAD)

    @property
    def growth(self) -> float:
        """How much surer class means are than without one row a class: the reliability of a mean of n rows is
        n τ² / (1 + n τ²)."""
        shots = self.problem.space.total_weight / len(self.problem.mass)
        return shots * (1.0 + (shots - 1.0) * self.spread) / ((shots - 1.0) * (1.0 + shots * self.spread))

    @cached_property
    def oracle_penalty(self) -> float:
        """The penalty at which the scatter within classes is nearest to its expectation, if rows are Gaussian.

        Oracle approximating shrinkage (Chen, Wiesel, Eldar, Hero, 2010).
        """
        dim, (trace, square) = self.problem.space.centred.shape[1], self.scatter_within
        apart = (self.freedom + 1.0) * (square - trace**2 / dim)
        share = min((square + trace**2) / max(apart, 1e-300), MOST_SHRUNK)
        return float(share / (1.0 - share) * trace / dim)

    def fit(self, penalty: float, covariance: Array | None = None) -> FittedDiscriminant:
        """At a penalty in units of a row's mean squared length, and a covariance over classes (C, C), else independent
        classes."""
        followed_R = self.problem.space.shrinkage(penalty, ClassBasis.identity())[:, 0]
        explained_CC = self.standard_means.T @ (followed_R[:, None] * self.standard_means)
        mass_C = self.problem.mass
        smoother_CC: Array = np.diag(self.spread / (self.spread + 1.0 / mass_C))
        if covariance is not None:
            prior_CC = self.spread * covariance
            smoother_CC = np.asarray(np.linalg.solve(prior_CC + np.diag(1.0 / mass_C), prior_CC).T, np.float64)
        inverse_CC = np.asarray(np.linalg.inv(np.eye(len(mass_C)) - explained_CC), np.float64)
        return FittedDiscriminant(self, penalty, followed_R, inverse_CC, smoother_CC)


def prior_of_rows(name: str, rows: Array, labels: Codes, num_classes: int, *, dim: int) -> ClassPrior:
    """What rows (M, E) of another corpus say of the classes; where E is `dim`, that of the target, with heads."""
    prior = ClassPrior.from_rows(name, rows, labels, num_classes)
    covered = np.flatnonzero(prior.covered)
    if rows.shape[1] != dim or len(rows) < 2 * len(covered) or len(covered) < 2:
        return prior
    space = RowSpace.from_rows(unit_rows(rows), np.ones(len(rows)))
    return _with_heads(prior, Problem(space, np.searchsorted(covered, labels), len(covered)))


def prior_of_statistics(name: str, statistics: RowStatistics) -> ClassPrior:
    """The same from unit rows that were added up; with heads where they have a scatter."""
    prior, num_covered = ClassPrior.from_sums(name, statistics.sums, statistics.counts), (statistics.counts > 0).sum()
    if statistics.scatter is None or statistics.total < 2 * num_covered or num_covered < 2:
        return prior
    return _with_heads(prior, Problem.from_statistics(statistics.of_seen_classes()))


def _with_heads(prior: ClassPrior, problem: Problem) -> ClassPrior:
    """With what is trained on the corpus's rows, a problem of the covered classes; rows all alike have no scatter."""
    if not len(problem.space.values):
        return prior
    rows, covered, num_classes = Discriminant(problem), np.flatnonzero(prior.covered), len(prior.covered)
    return replace(prior, trained=tuple(_trained(rows, each, covered, num_classes) for each in AMOUNTS))


def _trained(rows: Discriminant, amount: float, covered: Codes, num_classes: int) -> tuple[Array, Array]:
    """Weight (E, C) and bias (C,) for rows less their mean; 0 for classes that are not covered."""
    weight_EK, bias_K = rows.fit(amount * rows.scatter_within[0] / len(rows.problem.space.mean)).head()
    weight_EC, bias_C = np.zeros((len(weight_EK), num_classes)), np.zeros(num_classes)
    bias_K = bias_K + rows.problem.space.mean @ weight_EK
    weight_EC[:, covered] = weight_EK - weight_EK.mean(axis=1, keepdims=True)
    bias_C[covered] = bias_K - bias_K.mean()
    return weight_EC, bias_C


@dataclass(frozen=True)
class FittedDiscriminant:
    """One discriminant. Products are those of the inverse of the scatter within classes plus the penalty."""

    rows: Discriminant
    penalty: float
    followed: Array  # (R,) how far ridge follows each direction at this penalty
    inverse: Array  # (C, C) I plus the products of class means, times √n on both sides
    smoother: Array  # (C, C) from class means to those expected under their prior
    class_bias: Array | float = 0.0  # (C,) of how likely each class is, in units of the logits

    @cached_property
    def _mixing(self) -> Array:
        return (self.inverse / np.sqrt(self.rows.problem.mass)) @ self.smoother.T

    @cached_property
    def _products(self) -> Array:
        """Of each class's mean with each expected mean (C, C)."""
        root_C = np.sqrt(self.rows.problem.mass)
        products_CC: Array = (self.inverse - np.eye(len(root_C))) / root_C[:, None] / root_C @ self.smoother.T
        return products_CC

    @cached_property
    def _lengths(self) -> Array:
        """The product of each expected mean with itself (C,)."""
        lengths_C: Array = (self.smoother * self._products.T).sum(axis=1)
        return lengths_C

    def head(self) -> tuple[Array, Array]:
        """Weight (D, C) and bias (C,)."""
        space = self.rows.problem.space
        weight_DC = space.ridge(self.rows.standard_means @ self._mixing, self.penalty, ClassBasis.identity())
        return weight_DC, self.class_bias - space.mean @ weight_DC - 0.5 * self._lengths

    def left_out_logits(self, left: LeftRows) -> Array:
        """Logits (n, C) by the discriminants fitted without a copy of a row, its class as likely as before."""
        problem, precision = self.rows.problem, left.basis.dtype
        labels_n, each = problem.labels[left.picked], np.arange(len(left.picked))
        removed_n, mass_n = left.removed, problem.mass.astype(precision)[labels_n]
        inverse_CC, smoother_CC, followed_R, products_CC, lengths_C = (
            value.astype(precision)
            for value in (self.inverse, self.smoother, self.followed, self._products, self._lengths)
        )
        projected_nC = (left.basis * followed_R) @ self.rows.standard_means.astype(precision)
        of_means_nC = projected_nC @ inverse_CC
        with_expected_nC = (of_means_nC / np.sqrt(problem.mass).astype(precision)) @ smoother_CC.T
        # Products of the row, and of how far it is from its class's mean.
        own_n = of_means_nC[each, labels_n] / np.sqrt(mass_n)
        row_n = left.squared_basis @ followed_R + np.einsum("nc,nc->n", of_means_nC, projected_nC)
        mean_n = (np.diag(inverse_CC)[labels_n] - 1) / mass_n
        far_n, row_far_n = row_n - 2 * own_n + mean_n, row_n - own_n
        far_expected_nC = with_expected_nC - products_CC[labels_n]
        # Without the row its class's mean moves away from it, and the scatter loses one outer product.
        step_n = removed_n / (mass_n - removed_n)
        moved_nC = step_n[:, None] * smoother_CC.T[labels_n]
        gained_n = mass_n * step_n / np.maximum(1 - mass_n * step_n * far_n, np.finfo(precision).eps)
        shifted_nC = far_expected_nC - moved_nC * far_n[:, None]
        logits_nC = with_expected_nC + row_far_n[:, None] * (gained_n[:, None] * shifted_nC - moved_nC)
        lengths_nC = lengths_C - moved_nC * (far_expected_nC + shifted_nC) + gained_n[:, None] * shifted_nC**2
        discriminants_nC: Array = logits_nC - lengths_nC / 2 + np.asarray(self.class_bias, precision)
        return discriminants_nC
