"""Alignment of two representations of the same N things: CKA, mutual k-NN, CKNNA, SVCCA.

In: two arrays whose rows belong together: class means of two corpora, or true pairs where there are any. Out: a number
that is 1 for equal representations (up to rotation and scale) and small for unrelated ones. **None of them is 0 for
unrelated representations of few things**: with N near the widths, biased CKA and SVCCA are large for noise. Compare
with permuted rows (`uml_core.analysis.relevance` does), never with 0.

Nothing here holds an N × N matrix: linear measures go through the covariances of the features, RBF kernels and
neighbours through blocks of rows.

Shape legend: N rows, D and E embedding widths, B rows of a block, K neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg import eigh
from torch import Tensor
from torch.nn import functional

Floats = npt.NDArray[np.floating]
Kernel = Literal["linear", "rbf"]

BLOCK_ENTRIES = 32_000_000  # entries of one block of a kernel: 128 MB in float32
MEDIAN_ROWS = 2000  # rows among which the median distance is taken: all of them where there are no more
MIN_UNBIASED_ROWS = 4  # the unbiased estimator divides by N − 3


@dataclass(frozen=True)
class KernelSums:
    """What CKA needs of two N × N kernels: inner products of their entries, and row sums (N,)."""

    xx: float
    yy: float
    xy: float
    rows_x: npt.NDArray[np.float64]
    rows_y: npt.NDArray[np.float64]

    def hsic(self, *, unbiased: bool) -> tuple[float, float, float]:
        """Return HSIC of (x, y), (x, x), (y, y); the unbiased one takes kernels without their diagonals.

        Source: tr(KHLH), Kornblith et al. 2019; HSIC_1, Song et al. 2012, equation 5.
        """
        estimate = _unbiased_hsic if unbiased else _biased_hsic
        return (
            estimate(self.xy, self.rows_x, self.rows_y),
            estimate(self.xx, self.rows_x, self.rows_x),
            estimate(self.yy, self.rows_y, self.rows_y),
        )


def cka(x_ND: Floats, y_NE: Floats, *, kernel: Kernel = "linear", unbiased: bool = False) -> float:
    """Return centred kernel alignment in [0, 1] (unbiased: about 0 for independent rows, and possibly negative).

    The RBF kernel is exp(−d² / 2σ²) with σ the median distance between rows (of 2,000 rows where there are more).
    NaN where one side does not vary.

    Source: Kornblith et al. 2019; unbiased by Song et al. 2012, as in Nguyen et al. 2021.

    Raises:
        ValueError: the arrays differ in rows, or there are fewer than 2 (unbiased: 4).
    """
    _check_rows(x_ND, y_NE, at_least=MIN_UNBIASED_ROWS if unbiased else 2)
    if kernel == "rbf":
        widths = median_distance(x_ND), median_distance(y_NE)
        sums = _rbf_sums(x_ND, y_NE, widths, diagonal=not unbiased)
    else:
        sums = _linear_sums(x_ND, y_NE, diagonal=not unbiased)
    return _ratio(*sums.hsic(unbiased=unbiased))


def minibatch_cka(
    x_ND: Floats, y_NE: Floats, *, kernel: Kernel = "linear", batch_rows: int = 256, seed: int = 0
) -> float:
    """Return CKA from unbiased HSICs averaged over disjoint random batches: O(N · batch_rows) for any kernel.

    Source: Nguyen et al. 2021, equations 2 and 3. Rows that do not fill a batch are left out.

    Raises:
        ValueError: the arrays differ in rows, or a batch has fewer than 4 rows.
    """
    _check_rows(x_ND, y_NE, at_least=MIN_UNBIASED_ROWS)
    batch_rows = min(batch_rows, len(x_ND))
    if batch_rows < MIN_UNBIASED_ROWS:
        raise ValueError(f"batch_rows is {batch_rows}; expected at least {MIN_UNBIASED_ROWS}")
    widths = (median_distance(x_ND), median_distance(y_NE)) if kernel == "rbf" else None
    order = np.random.default_rng(seed).permutation(len(x_ND))
    totals = np.zeros(3)
    for start in range(0, len(order) - batch_rows + 1, batch_rows):
        x_BD, y_BE = (side[order[start : start + batch_rows]] for side in (x_ND, y_NE))
        sums = _rbf_sums(x_BD, y_BE, widths, diagonal=False) if widths else _linear_sums(x_BD, y_BE, diagonal=False)
        totals += sums.hsic(unbiased=True)
    return _ratio(*totals)


def mutual_knn(x_ND: Floats, y_NE: Floats, *, k: int = 10) -> float:
    """Return the mean share of a row's k nearest neighbours (cosine) that both representations agree on, in [0, 1].

    Chance is k / (N − 1). Source: Huh et al. 2024, appendix.

    Raises:
        ValueError: the arrays differ in rows, or k is not in 1 … N − 1.
    """
    _check_neighbours(x_ND, y_NE, k)
    return float(_in_rows(nearest_neighbours(x_ND, k), nearest_neighbours(y_NE, k)).mean())


def cknna(x_ND: Floats, y_NE: Floats, *, k: int = 10) -> float:
    """Return centred kernel nearest-neighbour alignment: linear CKA over pairs that are k-neighbours on both sides.

        Align(K, L) = Σ_ij α_ij (K_ij − mean_l K_il) (L_ij − mean_l L_il)
        CKNNA       = Align(K, L) / √(Align(K, K) · Align(L, L))

    with α_ij = 1 where j is among the k neighbours (cosine) of i under both kernels. Source: Huh et al. 2024, appendix.

    Raises:
        ValueError: the arrays differ in rows, or k is not in 1 … N − 1.
    """
    _check_neighbours(x_ND, y_NE, k)
    neighbours_x, neighbours_y = nearest_neighbours(x_ND, k), nearest_neighbours(y_NE, k)
    shared_NK = _in_rows(neighbours_x, neighbours_y)
    x_at_x, y_at_x = _centred_similarity(x_ND, neighbours_x), _centred_similarity(y_NE, neighbours_x)
    y_at_y = _centred_similarity(y_NE, neighbours_y)
    return _ratio((x_at_x * y_at_x * shared_NK).sum(), (x_at_x**2).sum(), (y_at_y**2).sum())


def svcca(x_ND: Floats, y_NE: Floats, *, variance: float = 0.99, max_dim: int | None = None) -> float:
    """Return the mean canonical correlation of the principal subspaces that hold `variance` of each side, in [0, 1].

    It is 1 for any two representations whose subspaces together have N − 1 dimensions or more: keep `max_dim` well
    below N / 2. Source: Raghu et al. 2017.

    Raises:
        ValueError: the arrays differ in rows, or there are fewer than 2.
    """
    _check_rows(x_ND, y_NE, at_least=2)
    covariance_DD, covariance_EE, cross_DE = _covariances(x_ND, y_NE)
    whitening_x = _principal_whitening(covariance_DD, variance, max_dim)
    whitening_y = _principal_whitening(covariance_EE, variance, max_dim)
    if not whitening_x.size or not whitening_y.size:
        return math.nan
    correlations = np.linalg.svd(whitening_x.T @ cross_DE @ whitening_y, compute_uv=False)
    return float(np.clip(correlations, 0.0, 1.0).mean())


def median_distance(x_ND: Floats) -> float:
    """Return the median Euclidean distance between different rows, of 2,000 seeded rows where there are more."""
    rows = np.arange(len(x_ND))
    if len(rows) > MEDIAN_ROWS:
        rows = np.sort(np.random.default_rng(0).choice(len(rows), MEDIAN_ROWS, replace=False))
    return float(functional.pdist(torch.from_numpy(np.asarray(x_ND[rows], dtype=np.float64))).median())


def nearest_neighbours(x_ND: Floats, k: int) -> npt.NDArray[np.int64]:
    """Return each row's k nearest other rows by cosine similarity (N, K), in blocks of rows."""
    unit_ND = functional.normalize(_tensor(x_ND), dim=1)
    found = []
    for start, stop in _blocks(len(unit_ND)):
        similarity_BN = unit_ND[start:stop] @ unit_ND.T
        similarity_BN[torch.arange(stop - start), torch.arange(start, stop)] = -torch.inf
        found.append(similarity_BN.topk(k, dim=1).indices)
    neighbours: npt.NDArray[np.int64] = torch.cat(found).numpy()
    return neighbours


def _linear_sums(x_ND: Floats, y_NE: Floats, *, diagonal: bool) -> KernelSums:
    """Return the sums of XXᵀ and YYᵀ (columns centred) through the covariances: the row sums are then 0."""
    covariance_DD, covariance_EE, cross_DE = _covariances(x_ND, y_NE)
    xx, yy, xy = ((matrix**2).sum() for matrix in (covariance_DD, covariance_EE, cross_DE))
    if diagonal:
        return KernelSums(xx, yy, xy, np.zeros(len(x_ND)), np.zeros(len(x_ND)))
    norms_x, norms_y = _squared_norms(x_ND), _squared_norms(y_NE)
    return KernelSums(xx - norms_x @ norms_x, yy - norms_y @ norms_y, xy - norms_x @ norms_y, -norms_x, -norms_y)


def _rbf_sums(x_ND: Floats, y_NE: Floats, widths: tuple[float, float], *, diagonal: bool) -> KernelSums:
    """Return the sums of two RBF kernels of the given widths, in blocks of rows over the upper triangle."""
    x, y = _tensor(x_ND - x_ND.mean(axis=0)), _tensor(y_NE - y_NE.mean(axis=0))
    totals = torch.zeros(3, dtype=torch.float64)
    rows_x, rows_y = torch.zeros(len(x), dtype=torch.float64), torch.zeros(len(x), dtype=torch.float64)
    for start, stop in _blocks(len(x)):
        kernel_x, kernel_y = _rbf_block(x, start, stop, widths[0]), _rbf_block(y, start, stop, widths[1])
        if not diagonal:
            kernel_x.diagonal().zero_()
            kernel_y.diagonal().zero_()
        totals += _counted(kernel_x, kernel_y, stop - start)
        for rows, kernel in ((rows_x, kernel_x), (rows_y, kernel_y)):
            rows[start:stop] += kernel.sum(dim=1, dtype=torch.float64)
            rows[stop:] += kernel[:, stop - start :].sum(dim=0, dtype=torch.float64)
    xx, yy, xy = totals.tolist()
    return KernelSums(xx, yy, xy, rows_x.numpy(), rows_y.numpy())


def _rbf_block(x: Tensor, start: int, stop: int, width: float) -> Tensor:
    """Return exp(−d² / 2σ²) between rows start … stop and all rows from start on."""
    norms = (x[start:] ** 2).sum(dim=1)
    squared = torch.addmm(norms, x[start:stop], x[start:].T, alpha=-2.0)
    squared.add_(norms[: stop - start, None]).clamp_(min=0).diagonal().zero_()
    return squared.mul_(-0.5 / max(width**2, torch.finfo(x.dtype).tiny)).exp_()


def _counted(kernel_x: Tensor, kernel_y: Tensor, width: int) -> Tensor:
    """Return Σ of xx, yy, xy over a block row: what lies right of the diagonal block stands for its mirror, too."""

    def summed(left: Tensor, right: Tensor) -> Tensor:
        return torch.einsum("bn,bn->b", left, right).double().sum()

    pairs = ((kernel_x, kernel_x), (kernel_y, kernel_y), (kernel_x, kernel_y))
    return torch.stack([2 * summed(left, right) - summed(left[:, :width], right[:, :width]) for left, right in pairs])


def _covariances(x_ND: Floats, y_NE: Floats) -> tuple[npt.NDArray[np.float64], ...]:
    """Return XᵀX, YᵀY and XᵀY of the centred columns, summed in float64 over blocks of rows."""
    mean_D, mean_E = x_ND.mean(axis=0, dtype=np.float64), y_NE.mean(axis=0, dtype=np.float64)
    dims = len(mean_D), len(mean_E)
    xx, yy, xy = np.zeros((dims[0], dims[0])), np.zeros((dims[1], dims[1])), np.zeros(dims)
    step = max(1, BLOCK_ENTRIES // (4 * max(dims)))
    for start in range(0, len(x_ND), step):
        x_BD, y_BE = x_ND[start : start + step] - mean_D, y_NE[start : start + step] - mean_E
        xx += x_BD.T @ x_BD
        yy += y_BE.T @ y_BE
        xy += x_BD.T @ y_BE
    return xx, yy, xy


def _squared_norms(x_ND: Floats) -> npt.NDArray[np.float64]:
    """Return |x_i − mean|² (N,)."""
    mean_D = x_ND.mean(axis=0, dtype=np.float64)
    step = max(1, BLOCK_ENTRIES // (4 * len(mean_D)))
    blocks = [x_ND[start : start + step] - mean_D for start in range(0, len(x_ND), step)]
    return np.concatenate([(block**2).sum(axis=1) for block in blocks])


def _principal_whitening(
    covariance_DD: npt.NDArray[np.float64], variance: float, max_dim: int | None
) -> npt.NDArray[np.float64]:
    """Return the map (D, kept) onto the leading principal directions, scaled to unit variance."""
    values, vectors_DD = eigh(covariance_DD)
    values, vectors_DD = values[::-1], vectors_DD[:, ::-1]
    positive = values > max(values[0], 0.0) * len(values) * np.finfo(np.float64).eps
    if not positive.any():
        return np.empty((len(values), 0))
    share = np.cumsum(values[positive]) / values[positive].sum()
    kept = min(int(np.searchsorted(share, variance - 1e-12)) + 1, int(positive.sum()), max_dim or len(values))
    whitening: npt.NDArray[np.float64] = vectors_DD[:, :kept] / np.sqrt(values[:kept])
    return whitening


def _in_rows(left_NK: npt.NDArray[np.int64], right_NK: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return where an entry of a row of `left` is somewhere in the same row of `right` (N, K)."""
    shared_NK: npt.NDArray[np.bool_] = (left_NK[:, :, None] == right_NK[:, None, :]).any(axis=2)
    return shared_NK


def _centred_similarity(x_ND: Floats, neighbours_NK: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return K_ij − mean_l K_il of the cosine kernel at each row's neighbours (N, K)."""
    unit_ND = functional.normalize(torch.from_numpy(np.asarray(x_ND)).double(), dim=1)
    row_means_N1 = (unit_ND @ unit_ND.mean(dim=0)).unsqueeze(1)
    picked = [(unit_ND * unit_ND[torch.from_numpy(column)]).sum(dim=1) for column in neighbours_NK.T]
    similarity: npt.NDArray[np.float64] = (torch.stack(picked, dim=1) - row_means_N1).numpy()
    return similarity


def _biased_hsic(product: float, rows_x: npt.NDArray[np.float64], rows_y: npt.NDArray[np.float64]) -> float:
    n = len(rows_x)
    return float(product - 2 / n * rows_x @ rows_y + rows_x.sum() * rows_y.sum() / n**2)


def _unbiased_hsic(product: float, rows_x: npt.NDArray[np.float64], rows_y: npt.NDArray[np.float64]) -> float:
    n = len(rows_x)
    corrected = product + rows_x.sum() * rows_y.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * rows_x @ rows_y
    return float(corrected / (n * (n - 3)))


def _ratio(cross: float, own_x: float, own_y: float) -> float:
    return float(cross / math.sqrt(own_x * own_y)) if own_x > 0 and own_y > 0 else math.nan


def _tensor(x_ND: Floats) -> Tensor:
    """Return a tensor in the array's own precision (half precision as float32)."""
    wide = x_ND if x_ND.dtype in (np.float32, np.float64) else x_ND.astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(wide))


def _blocks(num_rows: int) -> Iterator[tuple[int, int]]:
    step = max(1, BLOCK_ENTRIES // num_rows)
    for start in range(0, num_rows, step):
        yield start, min(start + step, num_rows)


def _check_rows(x_ND: Floats, y_NE: Floats, *, at_least: int) -> None:
    if len(x_ND) != len(y_NE):
        raise ValueError(f"the two representations have {len(x_ND)} and {len(y_NE)} rows; row i of both is one thing")
    if len(x_ND) < at_least:
        raise ValueError(f"{len(x_ND)} rows; expected at least {at_least}")


def _check_neighbours(x_ND: Floats, y_NE: Floats, k: int) -> None:
    _check_rows(x_ND, y_NE, at_least=2)
    if not 1 <= k < len(x_ND):
        raise ValueError(f"k is {k}; expected 1 to {len(x_ND) - 1} for {len(x_ND)} rows")
