"""Alignment of two representations of the same N things: unbiased linear CKA and mutual k-NN.

In: two arrays whose rows belong together: class means of two corpora, or true pairs where there are any. Out: a number
that is 1 for equal representations (up to rotation and scale) and small for unrelated ones. **Small is not 0**: with
few things and wide representations, compare with permuted rows (`uml_core.analysis.relevance` does).

`explain_alignment` measures both for a trained run, over class means (the target's held-out rows against the corpus's
train rows, classes that both have) or over true pairs (`--pairs`). Training on the same labels pulls class means
together, so the shared space says how far training went; what was there before is the value as encoded.

Shape legend: N rows, D and E embedding widths, B rows of a block, K neighbours.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from uml_core.analysis.shared_space import AnalysisResult, Floats, TrainedRun, class_means, shared_embeddings
from uml_core.data.labelled_rows import LabelledRows

BLOCK_ENTRIES = 32_000_000  # of one block of similarities: 128 MB in float32. No N × N matrix is ever held
MIN_ROWS = 4  # the unbiased estimator divides by N − 3
NEIGHBOURS = 10


def cka(x_ND: npt.NDArray[np.floating], y_NE: npt.NDArray[np.floating]) -> float:
    """Unbiased centred kernel alignment (linear), about 0 for independent rows and possibly negative.

    NaN where one side does not vary. The sums over two N × N kernels XXᵀ and YYᵀ without their diagonals are taken
    from the features' covariances, so that columns are centred and the kernels' row sums are the diagonal's negative.

    Source: Kornblith et al. 2019; HSIC_1 of Song et al. 2012, equation 5, as in Nguyen et al. 2021.

    Raises:
        ValueError: the arrays differ in rows, or there are fewer than 4.
    """
    if len(x_ND) != len(y_NE) or len(x_ND) < MIN_ROWS:
        raise ValueError(f"the representations have {len(x_ND)} and {len(y_NE)} rows; expected as many, at least 4")
    covariance_DD, covariance_EE, cross_DE = _covariances(x_ND, y_NE)
    norms_x, norms_y = _squared_norms(x_ND), _squared_norms(y_NE)
    xx, yy, xy = ((matrix**2).sum() for matrix in (covariance_DD, covariance_EE, cross_DE))
    cross = _unbiased_hsic(xy - norms_x @ norms_y, -norms_x, -norms_y)
    own_x = _unbiased_hsic(xx - norms_x @ norms_x, -norms_x, -norms_x)
    own_y = _unbiased_hsic(yy - norms_y @ norms_y, -norms_y, -norms_y)
    return float(cross / math.sqrt(own_x * own_y)) if own_x > 0 and own_y > 0 else math.nan


def mutual_knn(x_ND: npt.NDArray[np.floating], y_NE: npt.NDArray[np.floating], *, k: int = 10) -> float:
    """The mean share of a row's k nearest neighbours (cosine) that both representations agree on, in [0, 1].

    Chance is k / (N − 1). Source: Huh et al. 2024, appendix.

    Raises:
        ValueError: the arrays differ in rows, or k is not in 1 … N − 1.
    """
    if len(x_ND) != len(y_NE) or not 1 <= k < len(x_ND):
        raise ValueError(f"{len(x_ND)} and {len(y_NE)} rows with k {k}; expected as many, and k below their number")
    of_x, of_y = nearest_neighbours(x_ND, k), nearest_neighbours(y_NE, k)
    return float((of_x[:, :, None] == of_y[:, None, :]).any(axis=2).mean())


def nearest_neighbours(x_ND: npt.NDArray[np.floating], k: int) -> npt.NDArray[np.int64]:
    """Each row's k nearest other rows by cosine similarity (N, K), in blocks of rows."""
    wide = x_ND if x_ND.dtype in (np.float32, np.float64) else x_ND.astype(np.float32)
    unit_ND = functional.normalize(torch.from_numpy(np.ascontiguousarray(wide)), dim=1)
    found = []
    step = max(1, BLOCK_ENTRIES // len(unit_ND))
    for start in range(0, len(unit_ND), step):
        similarity_BN = unit_ND[start : start + step] @ unit_ND.T
        own = torch.arange(len(similarity_BN))
        similarity_BN[own, start + own] = -torch.inf
        found.append(similarity_BN.topk(k, dim=1).indices)
    neighbours: npt.NDArray[np.int64] = torch.cat(found).numpy()
    return neighbours


def _covariances(x_ND: npt.NDArray[np.floating], y_NE: npt.NDArray[np.floating]) -> tuple[Floats, Floats, Floats]:
    """XᵀX, YᵀY and XᵀY of the centred columns, summed in float64 over blocks of rows."""
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


def _squared_norms(x_ND: npt.NDArray[np.floating]) -> Floats:
    """Return |x_i − mean|² (N,)."""
    mean_D = x_ND.mean(axis=0, dtype=np.float64)
    step = max(1, BLOCK_ENTRIES // (4 * len(mean_D)))
    blocks = [x_ND[start : start + step] - mean_D for start in range(0, len(x_ND), step)]
    return np.concatenate([(block**2).sum(axis=1) for block in blocks])


def _unbiased_hsic(product: float, rows_x: Floats, rows_y: Floats) -> float:
    n = len(rows_x)
    corrected = product + rows_x.sum() * rows_y.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * rows_x @ rows_y
    return float(corrected / (n * (n - 3)))


def explain_alignment(run: TrainedRun) -> AnalysisResult:
    """Measure unbiased linear CKA (Kornblith et al.) and mutual k-NN (Huh et al.) of every corpus with the target."""
    metrics: dict[str, float] = {}
    summary = []
    for corpus in run.experiment.auxiliaries:
        over, spaces = _matched_rows(run, corpus)
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


def _matched_rows(run: TrainedRun, corpus: str) -> tuple[str, dict[str, tuple[Floats, Floats]]]:
    """In words what is matched, and the two sides as encoded and in the shared space."""
    held_out, train = run.held_out, run.data.train[corpus]
    if run.pairs is not None and corpus in run.pairs:
        target_rows, other_rows = run.pairs[run.data.target], run.pairs[corpus]
        sides = (held_out.embeddings[target_rows], train.embeddings[other_rows])
        normalize = run.experiment.model.normalize
        shared = (
            shared_embeddings(run.model, run.data.target, sides[0], normalize=normalize),
            shared_embeddings(run.model, corpus, sides[1], normalize=normalize),
        )
        encoded = (sides[0].astype(np.float64), sides[1].astype(np.float64))
        return f"{len(target_rows)} true pairs", {"encoded": encoded, "shared": shared}
    encoded = _common(run, held_out.gathered().astype(np.float64), held_out, train.gathered().astype(np.float64), train)
    shared = _common(run, run.embeddings(run.data.target, held_out), held_out, run.embeddings(corpus, train), train)
    return f"{len(encoded[0])} class means", {"encoded": encoded, "shared": shared}


def _common(
    run: TrainedRun, target_ND: Floats, target: LabelledRows, other_NE: Floats, other: LabelledRows
) -> tuple[Floats, Floats]:
    """The class means of both sides, of the classes that both have."""
    num_classes = len(run.data.classes)
    means_CD = class_means(target_ND, target.labels, num_classes)
    means_CE = class_means(other_NE, other.labels, num_classes)
    both_C = np.isfinite(means_CD).all(axis=1) & np.isfinite(means_CE).all(axis=1)
    return means_CD[both_C], means_CE[both_C]
