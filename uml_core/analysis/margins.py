"""Margins and clusters of the target in the shared space: does co-training move classes apart?

In: embeddings in the shared space, the head's rows, class codes. Out: margins, cluster measures, cosines, plane
coordinates, as plain arrays. Wider margins, a higher silhouette and a lower Davies-Bouldin index mean better separated
classes.

Shape legend: N rows, H shared width, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import confusion_matrix, davies_bouldin_score, silhouette_score

from uml_core.analysis.shared_space import Codes, Floats

MAX_SILHOUETTE_ROWS = 5000  # its cost grows with the square of the rows; more are sampled, seeded


@dataclass(frozen=True)
class Margins:
    """Each row's functional margin (N,), in units of the shared space, and relative to its own length (N,).

    The functional margin grows with the projection's weights, so compare it within a run only; the relative margin,
    the sine of the angle to the boundary, is in [−1, 1] and can be compared between runs.
    """

    functional: Floats
    relative: Floats


@dataclass(frozen=True)
class ClusterQuality:
    """Silhouette in [−1, 1] (higher is better) and Davies-Bouldin index ≥ 0 (lower is better)."""

    silhouette: float
    davies_bouldin: float


@dataclass(frozen=True)
class DecisionPlane:
    """Rows of two classes in a plane: `across` (N,) is the signed distance to their boundary, `along` (N,) is not.

    `shown_variance` is the share in [0, 1] of the rows' variance that the plane holds.
    """

    across: Floats
    along: Floats
    shown_variance: float


def functional_margins(shared_NH: Floats, head_CH: Floats, labels_N: Codes) -> Margins:
    """Return (w_y·v − w_j·v) / ‖w_y − w_j‖ with j the best wrong class: the signed distance of v to that boundary.

    Positive where the row is classified right. Two equal head rows have no boundary between them: the margin is 0.
    """
    rows = np.arange(len(labels_N))
    logits_NC = shared_NH @ head_CH.T
    wrong_NC = logits_NC.copy()
    wrong_NC[rows, labels_N] = -np.inf
    best_wrong_N = wrong_NC.argmax(axis=1)
    gap_N = logits_NC[rows, labels_N] - logits_NC[rows, best_wrong_N]
    length_N = np.linalg.norm(head_CH[labels_N] - head_CH[best_wrong_N], axis=1)
    functional_N = np.divide(gap_N, length_N, out=np.zeros_like(gap_N), where=length_N > 0)
    norm_N = np.linalg.norm(shared_NH, axis=1)
    return Margins(functional_N, np.divide(functional_N, norm_N, out=np.zeros_like(gap_N), where=norm_N > 0))


def cluster_quality(values_NH: Floats, labels_N: Codes, *, seed: int = 0) -> ClusterQuality | None:
    """Return how well classes are separated as clusters (Euclidean); None where every row or none is its own class."""
    if not 2 <= len(np.unique(labels_N)) < len(labels_N):
        return None
    sample = MAX_SILHOUETTE_ROWS if len(labels_N) > MAX_SILHOUETTE_ROWS else None
    return ClusterQuality(
        float(silhouette_score(values_NH, labels_N, sample_size=sample, random_state=seed)),
        float(davies_bouldin_score(values_NH, labels_N)),
    )


def prototype_cosines(head_CH: Floats, means_CH: Floats) -> Floats:
    """Return the cosine of every head row with every class-mean embedding (C, C); NaN for a class without rows."""
    cosines_CC: Floats = _unit(head_CH) @ _unit(means_CH).T
    return cosines_CC


def most_confused(predicted_N: Codes, labels_N: Codes, margins: Margins, num_classes: int) -> tuple[int, int]:
    """Return the two classes most often taken for one another; without any error, the two of the thinnest margins."""
    counts_CC = confusion_matrix(labels_N, predicted_N, labels=np.arange(num_classes))
    both_CC = np.triu(counts_CC + counts_CC.T, k=1)
    if both_CC.any():
        first, second = np.unravel_index(int(both_CC.argmax()), both_CC.shape)
        return int(first), int(second)
    sums_C = np.bincount(labels_N, weights=margins.relative, minlength=num_classes)
    counts_C = np.bincount(labels_N, minlength=num_classes)
    mean_C = np.divide(sums_C, counts_C, out=np.full(num_classes, np.inf), where=counts_C > 0)
    first, second = np.sort(np.argsort(mean_C, kind="stable")[:2])
    return int(first), int(second)


def decision_plane(shared_NH: Floats, head_CH: Floats, first: int, second: int) -> DecisionPlane:
    """Return rows in the plane of w_a − w_b and the first principal direction orthogonal to it.

    `across` > 0 where class `first` scores above `second`: the bias-free head puts their boundary at 0.
    """
    normal_H = head_CH[first] - head_CH[second]
    normal_H = normal_H / max(float(np.linalg.norm(normal_H)), np.finfo(np.float64).tiny)
    centred_NH = shared_NH - shared_NH.mean(axis=0)
    rest_NH = centred_NH - np.outer(centred_NH @ normal_H, normal_H)
    _, _, directions = np.linalg.svd(rest_NH, full_matrices=False)
    along_H = directions[0] * np.sign(directions[0][np.abs(directions[0]).argmax()])
    total = float((centred_NH**2).sum())
    shown = float(((centred_NH @ normal_H) ** 2).sum() + ((centred_NH @ along_H) ** 2).sum())
    return DecisionPlane(shared_NH @ normal_H, shared_NH @ along_H, shown / total if total > 0 else 1.0)


def _unit(rows_CH: Floats) -> Floats:
    norms_C1 = np.linalg.norm(rows_CH, axis=1, keepdims=True)
    norms_C1[norms_C1 == 0] = np.nan
    unit_CH: Floats = rows_CH / norms_C1
    return unit_CH
