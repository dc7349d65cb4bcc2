"""Whether an auxiliary corpus is believed: its true class names must beat permuted ones.

In: labelled rows and the class prototypes of a corpus. Out: a `Gate` for each of its two roles, and the covariance over
classes of the corpora that passed. Only what a corpus says of the order of classes is tested: permuting names leaves
its prototypes, their lengths and every eigenvalue as they are.

Shape legend: N rows, C classes, S classes that have rows, R rank of the rows, J eigenvectors over classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import Literal

import numpy as np
import numpy.typing as npt

from uml_core.models.closed_form.prior_model import ClassPrior, Codes, Mean, Problem
from uml_core.models.closed_form.row_space import Array, ClassBasis

ORDERS = 39  # permuted class names that the true ones must all beat: p = 1/40 in each of two roles
MIN_CLASSES = 5  # fewer have no 39 other orders
GATE_PENALTY = 10.0  # λ at which means are judged


@dataclass(frozen=True)
class Gate:
    """Whether a corpus is believed, in one of its roles: its true class names must beat permuted ones."""

    corpus: str
    role: Literal["mean", "gram", "bridge"]
    believed: bool
    beaten: int  # of `orders` permuted orders of the classes
    orders: int

    @property
    def reason(self) -> str:
        """The outcome in words."""
        if self.orders < ORDERS:
            return f"fewer than {MIN_CLASSES} common classes: no telling from permuted names"
        return f"the true class names beat {self.beaten} of {self.orders} permuted orders"


@dataclass(frozen=True)
class SeenClasses:
    """The classes among all that have rows, and what corpora say of them."""

    problem: Problem  # of the S classes that have rows
    seen: Codes  # (S,) their codes
    num_classes: int

    @cached_property
    def mask(self) -> npt.NDArray[np.bool_]:
        """Which classes have rows (C,)."""
        mask_C: npt.NDArray[np.bool_] = np.isin(np.arange(self.num_classes), self.seen)
        return mask_C

    def mean_gate(self, prior: ClassPrior, mean: Mean) -> Gate:
        """By how well the mean's logits fit the labels in the metric of the evidence."""
        precision_R1 = self.problem.unfollowed(GATE_PENALTY, ClassBasis.identity())
        products_SS = self.problem.projected_labels.T @ (precision_R1 * mean.projected)
        each = np.arange(len(self.seen))
        fits = [float(products_SS[each, order].sum()) for order in self._orders(prior)]
        return _gate(prior.name, "mean", fits)

    def gram_gate(self, prior: ClassPrior) -> Gate:
        """By the slope of the evidence in the Gram matrix's share, where the share is 0: Σ over pairs of classes of
        how much alike their rows are, times how much alike the corpus says they are."""
        similarity_SS = self._row_similarity
        gram_SS = self._gram_of_seen(prior)
        orders = self._orders(prior)
        fits = [float(np.vdot(similarity_SS, gram_SS.take(order, 0).take(order, 1))) for order in orders]
        return _gate(prior.name, "gram", fits)

    @cached_property
    def _row_similarity(self) -> Array:
        """How much alike the mean rows of two classes are (S, S); 0 on the diagonal."""
        problem = self.problem
        sums_RS = np.sqrt(problem.space.values)[:, None] * problem.projected_labels
        return _off_diagonal((sums_RS / problem.mass).T @ (sums_RS / problem.mass))

    def covariance(self, grams: Sequence[ClassPrior], share: float) -> Array:
        """The covariance over all classes (C, C): the mean of the corpora's Gram matrices, and a private part."""
        seen_C = self.mask
        gram_CC = sum((prior.gram(seen_C) for prior in grams), np.zeros((self.num_classes, self.num_classes)))
        covariance_CC: Array = share * gram_CC / len(grams) + (1 - share) * np.eye(self.num_classes)
        return covariance_CC

    def basis(self, grams: Sequence[ClassPrior], share: float) -> ClassBasis:
        """The eigenbasis of the covariance over the classes that have rows; its vectors are those of every share."""
        names = tuple(prior.name for prior in grams)
        if names not in self._gram_bases:
            gram_SS = self.covariance(grams, 1.0)[np.ix_(self.seen, self.seen)]
            self._gram_bases[names] = ClassBasis.from_covariance(gram_SS)
        gram = self._gram_bases[names]
        return ClassBasis(share * gram.values + (1 - share), gram.vectors)

    @cached_property
    def _gram_bases(self) -> dict[tuple[str, ...], ClassBasis]:
        return {}

    def agreement(self, prior: ClassPrior) -> float:
        """The correlation between how much alike two classes' rows are and how much alike the corpus says they are."""
        rows_SS, gram_SS = self._row_similarity, self._gram_of_seen(prior)
        length = math.sqrt(float((rows_SS**2).sum()) * float((gram_SS**2).sum()))
        return float((rows_SS * gram_SS).sum()) / max(length, 1e-300)

    def _gram_of_seen(self, prior: ClassPrior) -> Array:
        return _off_diagonal(prior.gram(self.mask)[np.ix_(self.seen, self.seen)])

    def _orders(self, prior: ClassPrior) -> list[Codes]:
        """The true order of the seen classes, then permuted ones of those that the corpus covers."""
        covered = np.flatnonzero(prior.covered[self.seen])
        identity = np.arange(len(self.seen))
        if len(covered) < MIN_CLASSES:
            return [identity]
        if len(covered) == MIN_CLASSES:
            others = [np.array(order) for order in permutations(range(len(covered)))][1:]
        else:
            generator = np.random.default_rng(len(covered))
            others = [generator.permutation(len(covered)) for _ in range(ORDERS)]
        orders = [identity]
        for other in others:
            order = identity.copy()
            order[covered] = covered[other]
            orders.append(order)
        return orders


def _off_diagonal(similarity: Array) -> Array:
    """A similarity less what every class has on average, 0 on the diagonal."""
    centred = similarity - similarity.mean(axis=0) - similarity.mean(axis=1, keepdims=True) + similarity.mean()
    off_diagonal: Array = centred - np.diag(np.diag(centred))
    return off_diagonal


def _gate(corpus: str, role: Literal["mean", "gram"], fits: Sequence[float]) -> Gate:
    """The first fit, of the true names, against the others."""
    true, permuted = fits[0], fits[1:]
    beaten = sum(true > other for other in permuted)
    believed = len(permuted) >= ORDERS and beaten == len(permuted) and true > 0
    return Gate(corpus, role, believed, beaten, len(permuted))
