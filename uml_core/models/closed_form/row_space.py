"""The algebra of a linear head with a matrix-normal prior: two eigendecompositions, and every question in closed form.

In: rows with targets and weights, and a covariance over classes. Out: the ridge solution, leave-one-row-out
predictions, and the quadratic forms of the evidence. No Kronecker product is ever formed: in the eigenbasis of the
classes every column is a ridge regression of its own, with penalty λ / k_j. Derived in docs/method.md, A head whose
prior the auxiliary corpora write.

Shape legend: N rows, D embedding width, C classes, J eigenvectors over classes, R rank of the rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from uml_core.data.row_statistics import RowStatistics

Array = npt.NDArray[np.float64]
RANK_TOLERANCE = 1e-10  # of the largest eigenvalue
EQUAL_LENGTHS = 0.25  # relative spread of the rows' lengths up to which a length says nothing of a class


def have_equal_lengths(rows: npt.NDArray[np.floating], weights: Array | None = None) -> bool:
    """Whether rows (N, D) hardly differ in length, as an encoder's embeddings: such rows are brought to unit length.

    Of many rows some are enough to tell.
    """
    lengths_N = np.linalg.norm(rows, axis=1)
    mean = float(np.average(lengths_N, weights=weights))
    deviation = float(np.sqrt(np.average((lengths_N - mean) ** 2, weights=weights)))
    return deviation <= EQUAL_LENGTHS * mean


@dataclass(frozen=True)
class ClassBasis:
    """The eigenbasis of a covariance over classes, without the direction that all classes share."""

    values: Array  # (J,)
    vectors: Array | None  # (C, J); None is the identity, for which J is C

    @classmethod
    def identity(cls) -> ClassBasis:
        """Classes that know nothing of each other: plain ridge."""
        return cls(np.ones(1), None)

    @classmethod
    def from_covariance(cls, covariance_CC: Array) -> ClassBasis:
        """Of a covariance (C, C). What all classes share goes, because no softmax sees it."""
        centred_CC = covariance_CC - covariance_CC.mean(axis=0)
        centred_CC -= centred_CC.mean(axis=1, keepdims=True)
        values_C, vectors_CC = np.linalg.eigh(centred_CC)
        return cls(np.maximum(values_C[1:], 0.0), vectors_CC[:, 1:])

    def rotate(self, columns: Array) -> Array:
        """From classes (..., C) to the eigenbasis (..., J)."""
        return columns if self.vectors is None else columns @ self.vectors.astype(columns.dtype)

    def rotate_back(self, columns: Array) -> Array:
        """From the eigenbasis (..., J) to classes (..., C)."""
        return columns if self.vectors is None else columns @ self.vectors.T.astype(columns.dtype)


@dataclass(frozen=True)
class RowSpace:
    """Weighted rows less their mean, in their eigenbasis; penalties are in units of the mean squared length of a row.

    A weight counts how often a row is there, so the answer is that for repeated rows.
    """

    mean: Array  # (D,)
    centred: Array  # (N, D), not weighted
    weights: Array  # (N,)
    values: Array  # (R,) squared singular values of the weighted centred rows, in units of `scale`
    scale: float  # mean squared length of a row
    axes: Array  # (D, R) right singular vectors, or (N, R) left ones where there are fewer rows than columns
    weight_of_all: float | None = None  # where `centred` and `weights` are of some rows alone

    @classmethod
    def from_rows(cls, rows_ND: Array, weights_N: Array) -> RowSpace:
        """Decompose N × N or D × D, whichever is smaller."""
        mean_D = weights_N @ rows_ND / weights_N.sum()
        centred_ND = rows_ND - mean_D
        weighted_ND = centred_ND * np.sqrt(weights_N)[:, None]
        num_rows, dim = rows_ND.shape
        gram = weighted_ND @ weighted_ND.T if num_rows <= dim else weighted_ND.T @ weighted_ND
        return cls(mean_D, centred_ND, weights_N, *_decomposed(gram, float(weights_N.sum())))

    @classmethod
    def from_statistics(cls, statistics: RowStatistics) -> RowSpace:
        """Of rows that were added up; `centred` has the kept ones, and `project_sums` takes the place of `project`."""
        assert statistics.scatter is not None
        centred_KD = statistics.kept - statistics.mean
        parts = _decomposed(statistics.scatter, statistics.total)
        return cls(statistics.mean, centred_KD, np.ones(len(centred_KD)), *parts, statistics.total)

    @property
    def is_dual(self) -> bool:
        """Whether `axes` are of rows: there are at most as many rows as columns."""
        return self.weight_of_all is None and len(self.centred) <= int(self.centred.shape[1])

    @property
    def total_weight(self) -> float:
        """How many rows there are, each as often as it counts."""
        return float(self.weights.sum()) if self.weight_of_all is None else self.weight_of_all

    @property
    def kept_share(self) -> float:
        """How many of all rows `centred` has."""
        return 1.0 if self.weight_of_all is None else len(self.centred) / self.weight_of_all

    def basis(self, picked: npt.NDArray[np.int64], precision: type[np.floating]) -> Array:
        """The left singular vectors of some rows, weights taken out again (n, R)."""
        if self.is_dual:
            basis_nR: Array = (self.axes[picked] / np.sqrt(self.weights[picked])[:, None]).astype(precision)
            return basis_nR
        scaled_DR = (self.axes / np.sqrt(self.values * self.scale)).astype(precision)
        return self.centred[picked].astype(precision) @ scaled_DR

    def project(self, targets_NC: Array) -> Array:
        """The weighted targets in the rows' eigenbasis (R, C)."""
        if self.is_dual:
            return self.axes.T @ (targets_NC * np.sqrt(self.weights)[:, None])
        return self.project_sums(self.centred.T @ (targets_NC * self.weights[:, None]))

    def project_sums(self, sums_DC: Array) -> Array:
        """The same from the sums (D, C) of the centred rows, each times its weighted targets; not where `is_dual`."""
        projected_RC: Array = (self.axes.T @ sums_DC) / np.sqrt(self.values * self.scale)[:, None]
        return projected_RC

    def project_head(self, head_DC: Array) -> Array:
        """What `project` gives for the logits of a head on the centred rows (R, C)."""
        if self.is_dual:
            return self.project(self.centred @ head_DC)
        projected_RC: Array = (self.axes.T @ head_DC) * np.sqrt(self.values * self.scale)[:, None]
        return projected_RC

    def shrinkage(self, penalty: float, classes: ClassBasis) -> Array:
        """How far each direction's target is followed (R, J), in [0, 1)."""
        if math.isinf(penalty):
            return np.zeros((len(self.values), len(classes.values)))
        strength_RJ = self.values[:, None] * classes.values / penalty
        followed_RJ: Array = strength_RJ / (1.0 + strength_RJ)
        return followed_RJ

    def ridge(self, projected_RC: Array, penalty: float, classes: ClassBasis) -> Array:
        """The head (D, C) that minimises Σ w |t − Wᵀx|² + penalty · tr(Wᵀ W K⁻¹), from projected targets."""
        followed_RJ = self.shrinkage(penalty, classes) / np.sqrt(self.values * self.scale)[:, None]
        coefficients_RC = classes.rotate_back(followed_RJ * classes.rotate(projected_RC))
        if not self.is_dual:
            return self.axes @ coefficients_RC
        weighted_RC = coefficients_RC / np.sqrt(self.values * self.scale)[:, None]
        return self.centred.T @ ((self.axes @ weighted_RC) * np.sqrt(self.weights)[:, None])


def _decomposed(gram: Array, total_weight: float) -> tuple[Array, float, Array]:
    """The values, the scale and the axes of a `RowSpace`."""
    values, axes = np.linalg.eigh(gram)  # smallest first
    smallest = max(RANK_TOLERANCE * float(values[-1]), np.finfo(np.float64).tiny)
    kept = slice(int(np.searchsorted(values, smallest, side="right")), None)
    scale = float(values[kept].sum() / total_weight) or 1.0
    return values[kept] / scale, scale, axes[:, kept]


@dataclass(frozen=True)
class LeftRows:
    """Rows that are left out one at a time."""

    picked: npt.NDArray[np.int64]  # (n,)
    basis: Array  # (n, R)
    squared_basis: Array  # (n, R)
    removed: Array  # (n,) weight of what is left out: one copy of the row
    indicators: Array  # (n, C) one-hot labels
    mean_logits: tuple[Array, ...]  # of every prior mean (n, C)


@dataclass(frozen=True)
class LeftOut:
    """Predictions for some rows by the heads that were fitted without them, in closed form.

    Where a row counts w times, one of its copies is left out. Computed in the precision of the basis.
    """

    basis: Array  # (n, R)
    leverage: Array  # (n, J) of the copy that is left out, the intercept's included
    followed: Array  # (R, J)
    classes: ClassBasis
    total_weight: float

    @classmethod
    def from_space(cls, space: RowSpace, rows: LeftRows, *, penalty: float, classes: ClassBasis) -> LeftOut:
        """For some rows, at a penalty and a covariance over classes."""
        followed_RJ = space.shrinkage(penalty, classes).astype(rows.basis.dtype)
        leverage_nJ = rows.removed[:, None] * (rows.squared_basis @ followed_RJ + 1.0 / space.total_weight)
        return cls(rows.basis, np.minimum(leverage_nJ, 1 - 1e-6), followed_RJ, classes, space.total_weight)

    def predict(self, targets_nC: Array, projected_RC: Array, mean_C: Array) -> Array:
        """Left-out predictions (n, C) of targets whose own values are `targets_nC`."""
        precision, classes = self.basis.dtype, self.classes
        mean_C = mean_C.astype(precision)
        rotated_nJ = classes.rotate(targets_nC - mean_C)
        fitted_nJ = self.basis @ (self.followed * classes.rotate(projected_RC)).astype(precision)
        left_nJ = (fitted_nJ - self.leverage * rotated_nJ) / (1.0 - self.leverage)
        return classes.rotate_back(left_nJ) + mean_C

    def of_own_class(self, labels_n: npt.NDArray[np.int64], own_nR: Array, mass_C: Array) -> Array:
        """What the other rows of each row's own class add to its prediction (n, C)."""
        own_nJ = own_nR @ self.followed
        own_nJ += (mass_C[labels_n] / self.total_weight).astype(self.basis.dtype)[:, None]
        share_nJ = (own_nJ - self.leverage) / (1.0 - self.leverage)
        if self.classes.vectors is None:
            own_nC = np.zeros((len(labels_n), len(mass_C)), dtype=self.basis.dtype)
            own_nC[np.arange(len(labels_n)), labels_n] = share_nJ[:, 0]
            return own_nC
        return self.classes.rotate_back(share_nJ * self.classes.vectors[labels_n].astype(self.basis.dtype))
