"""Multimodal neurons: units that respond alike to the two sides of a pair, and are no artefact.

In: activations (N, U) of the same units on N true pairs, one array a modality: of a shared head, or of any layer of a
shared trunk. Out: per unit Pearson r, r without the confounds, a permutation p value and its corrections. Pairs are
for evaluation only: nothing here is ever seen by training. What the paper does: docs/method.md, Analyses.

Three ways to be fooled, and what is done about them. Many units: of 384 noise units some correlate; so p values come
from shuffled pairs and are corrected for all units. A confound: long sentences and busy pictures excite everything; so
the partial correlation given each row's mean activation (and its length) is what is tested. The inputs:
where modalities agree about classes at all, even a random projection's units do, reliably; so a unit must also beat the
largest r of untrained networks.

Shape legend: N pairs, U units, K covariates, L labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.linalg import orth

from uml_core.evaluation.statistics import holm

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]
MIN_PAIRS = 8  # 8! = 40,320 orders: enough for the permutations below
MIN_PAIRS_PER_LABEL = 5
MIN_PERMUTATIONS = 9999
CLEARLY_NULL = 50  # a unit that this many shuffles match is settled (Besag and Clifford's sequential p)
NUM_MAXIMA = 200
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class PairedActivations:
    """Activations (N, U) of the same units on both sides of at least MIN_PAIRS pairs; labels, lengths (N,) if known."""

    first: Floats
    second: Floats
    labels: Codes | None = None
    first_length: Floats | None = None
    second_length: Floats | None = None


@dataclass(frozen=True)
class UnitCorrelations:
    """What is known of each unit (U,). `p_value` is one-sided (responds alike), of the partial correlation."""

    r: Floats
    partial_r: Floats
    p_value: Floats
    q_value: Floats  # Benjamini-Hochberg: the share of false finds among units below it
    holm_p: Floats  # Holm: the chance of any false find
    per_label: dict[int, Floats]  # label -> r (U,) over its pairs, where there are MIN_PAIRS_PER_LABEL
    null_maxima: Floats  # the largest partial r over units in each of 200 shuffles
    num_pairs: int

    @property
    def found(self) -> Codes:
        """Units whose q value is below 0.05, the largest partial correlation first."""
        units = np.flatnonzero(self.q_value < SIGNIFICANCE)
        ordered: Codes = units[np.argsort(-self.partial_r[units], kind="stable")]
        return ordered

    def beyond(self, untrained_r: Floats) -> Codes:
        """The found units that also beat every partial correlation of untrained networks (any shape)."""
        chosen: Codes = self.found[self.partial_r[self.found] > untrained_r.max()]
        return chosen


def unit_correlations(
    pairs: PairedActivations, *, num_permutations: int | None = None, seed: int = 0
) -> UnitCorrelations:
    """Each unit's correlation over pairs, with confounds removed, tested by shuffling the pairs.

    Freedman and Lane's permutation of residuals: both sides are regressed on the covariates, one side's residuals are
    shuffled over pairs and regressed again. With covariates it is exact asymptotically, without any it is exact.

    Args:
        pairs: activations of the same units on both sides.
        num_permutations: None for as many as Holm's correction over all units needs to be able to find anything.
        seed: draws the shuffles.
    """
    if num_permutations is None:
        num_permutations = max(MIN_PERMUTATIONS, math.ceil(pairs.first.shape[1] / SIGNIFICANCE))
    residuals = _Residuals.of_pairs(pairs)
    partial_U = residuals.correlations()
    p_U = _permutation_p(residuals, partial_U, num_permutations, np.random.default_rng([seed, 0]))
    maxima_rng = np.random.default_rng([seed, 1])
    return UnitCorrelations(
        r=pearson(pairs.first, pairs.second),
        partial_r=partial_U,
        p_value=p_U,
        q_value=stats.false_discovery_control(p_U, method="bh"),
        holm_p=np.array([*holm(dict(enumerate(p_U.tolist()))).values()]),
        per_label=_per_label(pairs),
        null_maxima=np.array([residuals.shuffled(maxima_rng).max() for _ in range(NUM_MAXIMA)]),
        num_pairs=len(pairs.first),
    )


def pearson(first_NU: Floats, second_NU: Floats) -> Floats:
    """Each unit's Pearson r over pairs (U,); 0 for a unit that does not vary."""
    sides = (_unit_length(values_NU - values_NU.mean(axis=0)) for values_NU in (first_NU, second_NU))
    products_U: Floats = np.einsum("nu,nu->u", *sides)
    return products_U


def partial_correlations(pairs: PairedActivations) -> Floats:
    """Each unit's partial correlation (U,) given mean activations and lengths, without any test."""
    return _Residuals.of_pairs(pairs).correlations()


@dataclass(frozen=True)
class _Residuals:
    """Both sides (N, U) without the covariates, whose orthonormal basis is (N, K); each unit at length 1."""

    first: Floats
    second: Floats
    basis: Floats

    @classmethod
    def of_pairs(cls, pairs: PairedActivations) -> _Residuals:
        basis_NK = _covariate_basis(pairs)
        first_NU, second_NU = (
            _unit_length(values_NU - basis_NK @ (basis_NK.T @ values_NU)) for values_NU in (pairs.first, pairs.second)
        )
        return cls(first_NU, second_NU, basis_NK)

    def correlations(self) -> Floats:
        products_U: Floats = np.einsum("nu,nu->u", self.first, self.second)
        return products_U

    def shuffled(self, rng: np.random.Generator) -> Floats:
        """Each unit's partial correlation (U,) with one side's residuals shuffled over pairs.

        The first side is orthogonal to the covariates Q, so regressing the shuffled side y again changes no product
        with it, only y's length: 1 − ‖Qᵀy‖².
        """
        shuffled_NU = self.second[rng.permutation(len(self.second))]
        products_U: Floats = np.einsum("nu,nu->u", self.first, shuffled_NU)
        left_U = np.maximum(1 - ((self.basis.T @ shuffled_NU) ** 2).sum(axis=0), 0)
        found_U: Floats = np.divide(products_U, np.sqrt(left_U), out=np.zeros_like(products_U), where=left_U > 1e-12)
        return found_U

    def only(self, units: npt.NDArray[np.bool_]) -> _Residuals:
        return _Residuals(self.first[:, units], self.second[:, units], self.basis)


def _permutation_p(
    residuals: _Residuals, observed_U: Floats, num_permutations: int, rng: np.random.Generator
) -> Floats:
    """One-sided p values (U,): (1 + shuffles that match) / (1 + shuffles); settled units leave early."""
    p_U = np.empty(observed_U.shape)
    units, matched = np.arange(len(observed_U)), np.zeros(len(observed_U), dtype=np.int64)
    for count in range(1, num_permutations + 1):
        matched += residuals.shuffled(rng) >= observed_U[units]
        settled = matched >= CLEARLY_NULL
        if settled.any():
            p_U[units[settled]] = CLEARLY_NULL / count
            units, matched, residuals = units[~settled], matched[~settled], residuals.only(~settled)
        if not len(units):
            return p_U
    p_U[units] = (1 + matched) / (1 + num_permutations)
    return p_U


def _covariate_basis(pairs: PairedActivations) -> Floats:
    """An orthonormal basis (N, K) of the constant, both sides' mean activations, and lengths where known."""
    columns = [np.ones(len(pairs.first)), pairs.first.mean(axis=1), pairs.second.mean(axis=1)]
    columns += [length for length in (pairs.first_length, pairs.second_length) if length is not None]
    # The mean of one or two units is the units themselves: there is then nothing left to explain.
    if pairs.first.shape[1] < 3:
        columns = [columns[0], *columns[3:]]
    scaled_NK = np.stack([column / (np.linalg.norm(column) or 1.0) for column in columns], axis=1)
    basis_NK: Floats = orth(scaled_NK, rcond=1e-10)
    return basis_NK


def _unit_length(values_NU: Floats) -> Floats:
    """Each unit over its length; one whose length is zero up to rounding is 0."""
    lengths_U = np.linalg.norm(values_NU, axis=0)
    units_NU: Floats = np.divide(
        values_NU, lengths_U, out=np.zeros_like(values_NU), where=lengths_U > 1e-12 * lengths_U.max()
    )
    return units_NU


def _per_label(pairs: PairedActivations) -> dict[int, Floats]:
    if pairs.labels is None:
        return {}
    labels, counts = np.unique(pairs.labels, return_counts=True)
    return {
        int(label): pearson(pairs.first[pairs.labels == label], pairs.second[pairs.labels == label])
        for label in labels[counts >= MIN_PAIRS_PER_LABEL]
    }
