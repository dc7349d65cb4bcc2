"""Alignment of two representations of the same N things: unbiased linear CKA and mutual k-NN.

In: two arrays whose rows belong together: class means of two corpora, or true pairs where there are any. Out: a number
that is 1 for equal representations (up to rotation and scale) and small for unrelated ones. **Small is not 0**: with
few things and wide representations, compare with permuted rows.

`explain_alignment` measures both for a trained run, over class means (the target's held-out rows against the corpus's
train rows, classes that both have) or over true pairs (`--pairs`). Training on the same labels pulls class means
together, so the shared space says how far training went; what was there before is the value as encoded.

Shape legend: N rows, D and E embedding widths.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from sklearn.neighbors import NearestNeighbors

from uml_core.analysis.shared_space import AnalysisResult, Floats, TrainedRun

MIN_ROWS = 4  # the unbiased estimator divides by N − 3
NEIGHBOURS = 10


def cka(x_ND: npt.NDArray[np.floating], y_NE: npt.NDArray[np.floating]) -> float:
    """Unbiased centred kernel alignment (linear), about 0 for independent rows and possibly negative.

    NaN where one side does not vary. Source: Kornblith et al. 2019; HSIC_1 of Song et al. 2012, equation 5, as in
    Nguyen et al. 2021.

    Raises:
        ValueError: the arrays differ in rows, or there are fewer than 4.
    """
    if len(x_ND) != len(y_NE) or len(x_ND) < MIN_ROWS:
        raise ValueError(f"the representations have {len(x_ND)} and {len(y_NE)} rows; expected as many, at least 4")
    x, y = (rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64) for rows in (x_ND, y_NE))
    own_x, own_y = _unbiased_hsic(x, x), _unbiased_hsic(y, y)
    return _unbiased_hsic(x, y) / math.sqrt(own_x * own_y) if own_x > 0 and own_y > 0 else math.nan


def _unbiased_hsic(x_ND: Floats, y_NE: Floats) -> float:
    """Of centred rows, from D × E products: no N × N kernel is held.

    The kernels XXᵀ and YYᵀ are taken without their diagonals; as columns are centred, the sums of their rows are then
    the diagonals' negative.
    """
    n, diagonal_x, diagonal_y = len(x_ND), (x_ND**2).sum(axis=1), (y_NE**2).sum(axis=1)
    product = ((x_ND.T @ y_NE) ** 2).sum() - diagonal_x @ diagonal_y
    sums = diagonal_x.sum() * diagonal_y.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * diagonal_x @ diagonal_y
    return float((product + sums) / (n * (n - 3)))


def mutual_knn(x_ND: npt.NDArray[np.floating], y_NE: npt.NDArray[np.floating], *, k: int) -> float:
    """The mean share of a row's k nearest neighbours (cosine) that both representations agree on, in [0, 1].

    Chance is k / (N − 1). Source: Huh et al. 2024, appendix.

    Raises:
        ValueError: the arrays differ in rows, or k is not in 1 … N − 1.
    """
    if len(x_ND) != len(y_NE) or not 1 <= k < len(x_ND):
        raise ValueError(f"{len(x_ND)} and {len(y_NE)} rows with k {k}; expected as many, and k below their number")
    of_x, of_y = (
        NearestNeighbors(n_neighbors=k, metric="cosine").fit(rows).kneighbors(return_distance=False)
        for rows in (x_ND, y_NE)
    )
    return float((of_x[:, :, None] == of_y[:, None, :]).any(axis=2).mean())


def explain_alignment(run: TrainedRun) -> AnalysisResult:
    """Measure unbiased linear CKA (Kornblith et al.) and mutual k-NN (Huh et al.) of every corpus with the target."""
    metrics: dict[str, float] = {}
    summary = []
    for corpus in run.experiment.auxiliaries:
        rows = run.matched(corpus)
        sides = ((run.data.target, rows.target), (corpus, rows.other))
        spaces = {
            "encoded": [rows.by_pair(side.gathered().astype(np.float64), side) for _, side in sides],
            "shared": [rows.by_pair(run.embeddings(name, side), side) for name, side in sides],
        }
        over = f"{len(spaces['encoded'][0])} {'class means' if rows.by_class else 'true pairs'}"
        found = {}
        for space, (target_ND, other_NE) in spaces.items():
            if len(target_ND) < MIN_ROWS:
                continue
            # Among so few rows everybody is a neighbour: at most half of the others.
            neighbours = max(1, min(NEIGHBOURS, (len(target_ND) - 1) // 2))
            found[space] = (cka(target_ND, other_NE), mutual_knn(target_ND, other_NE, k=neighbours))
            for name, value in zip(("cka", "mutual_knn"), found[space], strict=True):
                if np.isfinite(value):  # NaN: one side does not vary
                    metrics[f"analysis/alignment/{corpus}/{space}/{name}"] = value
        words = ", ".join(f"{space} CKA {values[0]:.3f}, k-NN {values[1]:.3f}" for space, values in found.items())
        summary.append(f"alignment of {run.data.target} and {corpus} over {over}: {words or 'too few to tell'}")
    return AnalysisResult(metrics, summary=tuple(summary))
