"""An unlabelled pile of the target's own modality beside a head: Gaussian classes by expectation maximisation.

In: labelled rows, the class priors of other corpora, and unlabelled rows of the target's modality, none of them a test
row. Out: a `PriorHead` that has learned from the pile, and what left-out halves of the labelled rows say of it. Shares
of classes in the pile are estimated, so classes may be rare, missing or foreign there. docs/method.md, An unlabelled
pile, derives it.

Shape legend: N labelled rows, U unlabelled rows, D embedding width, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.special import softmax

from uml_core.models.closed_form.prior_head import PriorHead, fit_prior_head
from uml_core.models.closed_form.prior_model import ClassPrior, Codes
from uml_core.models.closed_form.row_space import Array
from uml_core.models.closed_form.temperature import fit_temperature

STEPS = 5
SHARE_STEPS = 20
SHRINKAGE = 0.7  # of the scatter within classes, towards a multiple of the identity
ROWS_OF_MEAN = 3.0  # that each class's mean has at the mean of all
ROWS_OF_CLASS = 5.0  # that each class has in the pile before one is looked at
FIRST_VOICE = 0.2  # of the pile where nothing can be left out
CLEARLY = 5.0  # by so much left-out labels must be likelier with the pile, as a logarithm
VOICES = tuple(np.linspace(0.0, 0.7, 8).tolist())


@dataclass(frozen=True)
class PooledHead:
    """A head beside an unlabelled pile."""

    head: PriorHead
    voice: float  # of the pile, v in p_head^(1−v) · p_pile^v; 0 where left-out labels are likelier without it
    shares: Array  # of classes in the pile (C,), as far as it is of these classes
    # Of each row (N,) by heads of the other half of the rows, 0 or 1: "with" the pile and "without"; empty where a
    # class has one row.
    correct: dict[str, Array] = field(default_factory=dict)


def fit_pooled_head(
    rows: Array,
    labels: Codes,
    num_classes: int,
    priors: Sequence[ClassPrior],
    pile: Array,
    *,
    weights: Array | None = None,
    discriminates: bool = True,
) -> PooledHead:
    """Fit a head as `fit_prior_head` does, then let it learn from unlabelled rows.

    Args:
        rows: labelled embeddings (N, D).
        labels: codes (N,) in [0, num_classes).
        num_classes: C.
        priors: of auxiliary corpora.
        pile: unlabelled embeddings (U, D), at unit length where `rows` are.
        weights: how often each labelled row counts (N,); once by default.
        discriminates: as in `fit_prior_head`.
    """
    weights_N = np.ones(len(rows)) if weights is None else weights

    def fit(picked: Codes) -> _Experts:
        own_ND, codes_N, counts_N = rows[picked], labels[picked], weights_N[picked]
        head = fit_prior_head(own_ND, codes_N, num_classes, priors, weights=counts_N, discriminates=discriminates)
        return _Experts.of(head, own_ND, np.eye(num_classes)[codes_N] * counts_N[:, None], pile)

    present = np.flatnonzero(weights_N > 0)
    experts, (*halves, single) = fit(present), _halves(labels[present])
    if 2 * len(np.unique(labels[present[halves[0]]])) < len(np.unique(labels[present])):  # most classes have one row
        voice = 0.0 if experts.head.scales else FIRST_VOICE  # prototypes of another corpus know more
        return PooledHead(experts.mixed(voice) if voice else experts.head, voice, experts.shares)
    left = [(fit(present[np.concatenate([half, single])]), present[other]) for half, other in (halves, halves[::-1])]
    picked = np.concatenate([other for _, other in left])
    labels_N, counts_N = labels[picked], weights_N[picked]

    def left_out(voice: float) -> Array:
        return np.concatenate([each.mixed(voice).logits(rows[other]) for each, other in left])

    def hits(voice: float) -> Array:
        correct_N: Array = (left_out(voice).argmax(axis=1) == labels_N).astype(np.float64)
        return correct_N

    fits = {voice: fit_temperature(left_out(voice), labels_N, counts_N) for voice in VOICES}
    voice = min(fits, key=lambda each: fits[each][1])
    if (fits[0.0][1] - fits[voice][1]) * counts_N.sum() < CLEARLY:
        voice = 0.0
    correct = {"with": hits(voice), "without": hits(0.0)}
    head = experts.mixed(voice)
    return PooledHead(
        replace(head, temperature=fits[voice][0]) if voice else experts.head, voice, experts.shares, correct
    )


def _halves(labels_N: Codes) -> tuple[Codes, Codes, Codes]:
    """Every other row of each class, the others, and the only rows of their classes, which cannot be left out."""
    classes, counts = np.unique(labels_N, return_counts=True)
    is_single_N = np.isin(labels_N, classes[counts < 2])
    order = np.argsort(labels_N, kind="stable")
    order = order[~is_single_N[order]]
    places = np.arange(len(order)) - np.searchsorted(labels_N[order], labels_N[order])
    return order[places % 2 == 0], order[places % 2 == 1], np.flatnonzero(is_single_N)


@dataclass(frozen=True)
class _Experts:
    """A head, and Gaussian classes of one covariance that learned from the pile, as sure as the head on its rows."""

    head: PriorHead
    weight: Array  # (D, C) of the Gaussian classes
    bias: Array  # (C,)
    shares: Array  # (C,)

    @classmethod
    def of(cls, head: PriorHead, rows_ND: Array, mass_NC: Array, pile_UD: Array) -> _Experts:
        """By expectation maximisation from what the head says of the pile."""
        mean_D = np.concatenate([rows_ND, pile_UD]).mean(axis=0)
        own_ND, unlabelled_UD = rows_ND - mean_D, pile_UD - mean_D
        head_UC = head.logits(pile_UD) / head.temperature
        belief_UC, shares_C = _posterior(head_UC)
        for _ in range(STEPS):
            weight_DC, bias_C = _gaussian_classes(own_ND, mass_NC, unlabelled_UD, belief_UC)
            logits_UC = unlabelled_UD @ weight_DC + bias_C
            scale = float(head_UC.std() / max(logits_UC.std(), 1e-300))
            belief_UC, shares_C = _posterior(head_UC + scale * logits_UC)
        return cls(head, scale * weight_DC, scale * (bias_C - mean_D @ weight_DC), shares_C)

    def mixed(self, voice: float) -> PriorHead:
        """The product of both experts."""
        own = (1.0 - voice) / self.head.temperature
        weight, bias = (
            own * ours + voice * theirs
            for ours, theirs in ((self.head.weight, self.weight), (self.head.bias, self.bias))
        )
        return replace(self.head, weight=weight, bias=bias, temperature=1.0)


def _posterior(logits_UC: Array) -> tuple[Array, Array]:
    """Class probabilities (U, C) of the pile's rows, and the shares of classes (C,), by expectation maximisation."""
    likelihood_UC: Array = softmax(logits_UC, axis=1)
    num_rows, num_classes = likelihood_UC.shape
    shares_C = np.full(num_classes, 1.0 / num_classes)
    for _ in range(SHARE_STEPS):
        belief_UC = likelihood_UC * shares_C
        belief_UC /= belief_UC.sum(axis=1, keepdims=True)
        shares_C = (belief_UC.sum(axis=0) + ROWS_OF_CLASS) / (num_rows + num_classes * ROWS_OF_CLASS)
    return belief_UC, shares_C


def _gaussian_classes(rows_ND: Array, mass_NC: Array, pile_UD: Array, belief_UC: Array) -> tuple[Array, Array]:
    """Weight (D, C) and bias (C,) of classes that are equally likely, from rows less the mean of all."""
    mass_C = mass_NC.sum(axis=0) + belief_UC.sum(axis=0)
    sums_CD = mass_NC.T @ rows_ND + belief_UC.T @ pile_UD
    means_CD = sums_CD / (mass_C + ROWS_OF_MEAN)[:, None]
    scatter_DD = rows_ND.T @ (rows_ND * mass_NC.sum(axis=1)[:, None]) + pile_UD.T @ pile_UD
    within_DD = (scatter_DD - means_CD.T @ (means_CD * mass_C[:, None])) / mass_C.sum()
    dim = len(within_DD)
    mean_variance = max(float(np.trace(within_DD)) / dim, 1e-12)  # rows that are all alike have none
    within_DD = (1 - SHRINKAGE) * within_DD + SHRINKAGE * mean_variance * np.eye(dim)
    weight_DC = np.asarray(np.linalg.solve(within_DD, means_CD.T), np.float64)
    return weight_DC, -0.5 * np.einsum("cd,dc->c", means_CD, weight_DC)
