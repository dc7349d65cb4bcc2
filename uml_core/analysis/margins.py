"""Margins, clusters, prototypes and the decision plane of a trained run: does co-training move classes apart?

In: embeddings in the shared space, the head's rows, class codes. Out: margins, cluster measures, cosines and plane
coordinates as plain arrays, and of a `TrainedRun` the analyses with their figures. Wider margins, a higher silhouette
and a lower Davies-Bouldin index mean better separated classes.

Shape legend: N rows, H shared width, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix, davies_bouldin_score, silhouette_score

from uml_core.analysis.shared_space import AnalysisResult, Codes, Floats, TrainedRun, class_means
from uml_core.errors import InputError, listing, nearest
from uml_core.figures.drawing import (
    BLACK,
    BLUE,
    ORANGE,
    VERMILION,
    WIDTH_IN,
    ReportFigure,
    canvas,
    drawn,
    house_style,
    printable,
    stacked_panels,
)

Flags = npt.NDArray[np.bool_]
PREFIX = "analysis/margins"
MAX_NAMED_CLASSES = 45  # more names than this are no longer legible beside a heat map
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
class DecisionPlane:
    """Rows of two classes in a plane: `across` (N,) is the signed distance to their boundary, `along` (N,) is not.

    `shown_variance` is the share in [0, 1] of the rows' variance that the plane holds.
    """

    across: Floats
    along: Floats
    shown_variance: float


def functional_margins(shared_NH: Floats, head_CH: Floats, labels_N: Codes) -> Margins:
    """(w_y·v − w_j·v) / ‖w_y − w_j‖ with j the best wrong class: the signed distance of v to that boundary.

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


def cluster_quality(values_NH: Floats, labels_N: Codes, *, seed: int = 0) -> dict[str, float]:
    """How well classes are separated as clusters (Euclidean); empty where every row or none is its own class.

    Silhouette in [−1, 1] (higher is better), and Davies-Bouldin index ≥ 0 (lower is better).
    """
    if not 2 <= len(np.unique(labels_N)) < len(labels_N):
        return {}
    sample = MAX_SILHOUETTE_ROWS if len(labels_N) > MAX_SILHOUETTE_ROWS else None
    return {
        "silhouette": float(silhouette_score(values_NH, labels_N, sample_size=sample, random_state=seed)),
        "davies_bouldin": float(davies_bouldin_score(values_NH, labels_N)),
    }


def prototype_cosines(head_CH: Floats, means_CH: Floats) -> Floats:
    """The cosine of every head row with every class-mean embedding (C, C); NaN for a class without rows."""
    lengths_CC = np.outer(np.linalg.norm(head_CH, axis=1), np.linalg.norm(means_CH, axis=1))
    return np.divide(head_CH @ means_CH.T, lengths_CC, out=np.full_like(lengths_CC, np.nan), where=lengths_CC > 0)


def most_confused(predicted_N: Codes, labels_N: Codes, margins: Margins, num_classes: int) -> tuple[int, int]:
    """The two classes most often taken for one another; without any error, the two of the thinnest margins."""
    counts_CC = confusion_matrix(labels_N, predicted_N, labels=np.arange(num_classes))
    both_CC = np.triu(counts_CC + counts_CC.T, k=1)
    if both_CC.any():
        first, second = np.unravel_index(int(both_CC.argmax()), both_CC.shape)
        return int(first), int(second)
    mean_C = class_means(margins.relative[:, None], labels_N, num_classes)[:, 0]  # NaN, without rows, is sorted last
    first, second = np.sort(np.argsort(mean_C, kind="stable")[:2])
    return int(first), int(second)


def decision_plane(shared_NH: Floats, head_CH: Floats, first: int, second: int) -> DecisionPlane:
    """Rows in the plane of w_a − w_b and the first principal direction orthogonal to it.

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


def explain_margins(run: TrainedRun) -> AnalysisResult:
    """Measure margins and clusters of the target's held-out rows, before and after the projection."""
    rows, target = run.held_out, run.data.target
    shared_NH = run.embeddings(target, rows)
    margins = functional_margins(shared_NH, run.head(target), rows.labels)
    metrics = {
        f"{PREFIX}/functional_mean": float(margins.functional.mean()),
        f"{PREFIX}/functional_median": float(np.median(margins.functional)),
        f"{PREFIX}/relative_mean": float(margins.relative.mean()),
        f"{PREFIX}/relative_median": float(np.median(margins.relative)),
        f"{PREFIX}/positive_share": float((margins.functional > 0).mean()),
    }
    clusters = []
    for words, suffix, values in (
        ("embeddings as encoded", "_before_projection", rows.gathered().astype(np.float64)),
        ("in the shared space", "", shared_NH),
    ):
        quality = cluster_quality(values, rows.labels, seed=run.experiment.seed)
        metrics |= {f"{PREFIX}/{name}{suffix}": value for name, value in quality.items()}
        if quality:
            clusters.append(
                f"{words}: silhouette {quality['silhouette']:.3f}, Davies-Bouldin {quality['davies_bouldin']:.2f}"
            )
    split = run.held_out_words
    caption = (
        f"Functional margin of {len(rows)} {split} rows of {target}: the distance to the boundary with the best wrong "
        "class. Rows left of 0 are classified wrong. The unit depends on the run's weights; compare runs by the "
        "relative margin."
    )
    line = (
        f"margins of {len(rows)} {split} rows: relative median {np.median(margins.relative):+.3f}, "
        f"{(margins.functional > 0).mean():.1%} positive"
    )
    figure = drawn("margins", margin_histogram(margins, split=split), caption=caption, alternative=line)
    return AnalysisResult(metrics, (figure,), summary=(line, *(f"  {words}" for words in clusters)))


def explain_prototypes(run: TrainedRun) -> AnalysisResult:
    """Compare the head's rows with every auxiliary corpus's class means in the shared space."""
    metrics: dict[str, float] = {}
    figures: list[ReportFigure] = []
    summary = []
    for corpus in run.experiment.auxiliaries:
        rows = run.data.train[corpus]
        means_CH = class_means(run.embeddings(corpus, rows), rows.labels, len(run.data.classes))
        cosines_CC = prototype_cosines(run.head(corpus), means_CH)
        present_C = np.isfinite(np.diag(cosines_CC))
        if not present_C.any():
            continue
        own_C = np.diag(cosines_CC)[present_C]
        others = cosines_CC[present_C][:, present_C][~np.eye(int(present_C.sum()), dtype=bool)]
        nearest_C = np.nanargmax(cosines_CC[present_C], axis=1) == np.flatnonzero(present_C)
        metrics[f"analysis/prototypes/{corpus}/own_cosine"] = float(own_C.mean())
        metrics[f"analysis/prototypes/{corpus}/nearest_share"] = float(nearest_C.mean())
        if len(others):
            metrics[f"analysis/prototypes/{corpus}/other_cosine"] = float(others.mean())
        rest = f", with other classes {others.mean():.3f}" if len(others) else ""
        note = "" if run.experiment.is_active(corpus) else " (takes no part in this run's steps)"
        line = (
            f"prototypes of {corpus}{note}: a head row's cosine with its own class mean is {own_C.mean():.3f}{rest}; "
            f"nearest is its own for {nearest_C.mean():.1%} of {len(own_C)} classes"
        )
        summary.append(line)
        figure = prototype_heat_map(cosines_CC, run.data.classes, corpus=corpus)
        caption = (
            f"Cosine of head rows with class means of {corpus}{note} in the shared space; a diagonal means they agree."
        )
        figures.append(drawn(f"prototypes_{corpus}", figure, caption=caption, alternative=line))
    return AnalysisResult(metrics, tuple(figures), summary=tuple(summary))


def explain_decision_plane(run: TrainedRun) -> AnalysisResult:
    """Draw the plane that decides between two classes, the most confused ones unless others are named."""
    target, held_out, train = run.data.target, run.held_out, run.data.train[run.data.target]
    held_NH, head_CH = run.embeddings(target, held_out), run.head(target)
    if run.plane_classes is not None:
        classes = run.data.classes
        for name in run.plane_classes:
            if name not in classes:
                hint = f"the target's classes are {listing(classes)}{nearest(name, classes)}"
                raise InputError(f"--classes names '{name}'; {hint}")
        first, second = map(classes.index, run.plane_classes)
        if first == second:
            raise InputError(
                f"--classes names '{run.plane_classes[0]}' twice; a decision plane lies between two classes"
            )
        why = "chosen by name"
    else:
        margins = functional_margins(held_NH, head_CH, held_out.labels)
        predicted_N = (held_NH @ head_CH.T).argmax(axis=1)
        first, second = most_confused(predicted_N, held_out.labels, margins, len(run.data.classes))
        why = "most often taken for one another"
    shared_NH = np.concatenate([held_NH, run.embeddings(target, train)])
    labels_N = np.concatenate([held_out.labels, train.labels])
    chosen_N = np.isin(labels_N, (first, second))
    plane = decision_plane(shared_NH[chosen_N], head_CH, first, second)
    names = (run.data.classes[first], run.data.classes[second])
    is_held_out_N = np.arange(len(labels_N)) < len(held_out)
    is_first_N, is_held_out_N = labels_N[chosen_N] == first, is_held_out_N[chosen_N]
    right_N = ((plane.across > 0) == is_first_N)[is_held_out_N]
    share = f"{right_N.mean():.1%} of their {len(right_N)}" if len(right_N) else "none of their 0"
    line = (
        f"decision plane of {names[0]} and {names[1]} ({why}): {share} {run.held_out_words} rows lie on the right "
        f"side; the plane shows {plane.shown_variance:.0%} of their variance"
    )
    caption = (
        f"{names[0]} against {names[1]} ({why}) in the plane of their head rows' difference and the first principal "
        f"direction orthogonal to it, which holds {plane.shown_variance:.0%} of these rows' variance."
    )
    figure = plane_scatter(plane, is_first_N, is_held_out_N, names)
    figures = (drawn("decision_plane", figure, caption=caption, alternative=line),)
    metrics = {"analysis/decision_plane/right_side_share": float(right_N.mean())} if len(right_N) else {}
    return AnalysisResult(metrics, figures, summary=(line,))


def margin_histogram(margins: Margins, *, split: str) -> Figure:
    """Draw the distribution of the functional margin: left of 0 is wrong."""
    values_N = margins.functional
    with house_style():
        figure, (axis,) = stacked_panels([2.8])
        width = float(np.ptp(values_N)) / min(40, max(8, len(values_N) // 8)) or 1.0
        # An edge lies at 0, so that no bar holds right and wrong rows together.
        edges = width * np.arange(np.floor(values_N.min() / width), np.ceil(values_N.max() / width) + 1)
        right = values_N > 0
        for chosen, colour, label in ((right, BLUE, "right class"), (~right, VERMILION, "wrong class")):
            axis.hist(
                values_N[chosen], bins=list(edges), color=colour, label=f"{label} ({int(chosen.sum())})", alpha=0.85
            )
        axis.axvline(0, color=BLACK, linewidth=1.4)
        axis.set_xlabel("functional margin (units of the shared space)")
        axis.set_ylabel(f"{split} rows (count)")
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def prototype_heat_map(cosines_CC: Floats, classes: Sequence[str], *, corpus: str) -> Figure:
    """Draw the cosine of head rows (down) with class-mean auxiliary embeddings (across)."""
    count = len(classes)
    named = count <= MAX_NAMED_CLASSES
    with house_style(**{"axes.grid": False}):
        figure = canvas(WIDTH_IN * 0.95)
        axis = figure.subplots()
        image = axis.imshow(np.ma.masked_invalid(cosines_CC), cmap="cividis")
        names = [printable(name, limit=22) for name in classes]
        size = 9 if count <= 12 else 5.5
        if named:
            axis.set_xticks(range(count), names, rotation=90, fontsize=size)
            axis.set_yticks(range(count), names, fontsize=size)
        axis.set_xlabel(f"class mean of {printable(corpus)}" + ("" if named else " (class number)"))
        axis.set_ylabel("head row of the class" + ("" if named else " (class number)"))
        axis.tick_params(length=0)
        figure.colorbar(image, ax=axis, shrink=0.7, label="cosine (no unit)")
    return figure


def plane_scatter(plane: DecisionPlane, is_first_N: Flags, is_held_out_N: Flags, names: tuple[str, str]) -> Figure:
    """Draw rows of two classes and the boundary between them; hollow marks are train rows."""
    with house_style():
        figure, (axis,) = stacked_panels([3.6])
        for of_class_N, name, colour, marker in zip(
            (is_first_N, ~is_first_N), names, (BLUE, ORANGE), ("o", "s"), strict=True
        ):
            for held_out, words in ((True, "held out"), (False, "train")):
                chosen_N = of_class_N & (is_held_out_N == held_out)
                axis.scatter(
                    plane.across[chosen_N],
                    plane.along[chosen_N],
                    label=f"{printable(name)}, {words} ({int(chosen_N.sum())})",
                    marker=marker,
                    s=34,
                    facecolor=colour if held_out else "none",
                    edgecolor="white" if held_out else colour,
                    linewidth=0.6 if held_out else 1.4,
                    zorder=3,
                )
        axis.axvline(0, color=BLACK, linewidth=1.4, label="boundary")
        first, second = (printable(name, limit=22) for name in names)
        axis.set_title(f"← {second}", fontsize=9)
        axis.set_title(f"{first} →", fontsize=9, loc="right")
        axis.set_xlabel("distance to the boundary (units of the shared space)")
        axis.set_ylabel("first principal direction\nalong the boundary (same units)")
        figure.legend(loc="outside lower center", ncols=2)
    return figure
