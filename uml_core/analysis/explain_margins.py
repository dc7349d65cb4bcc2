"""A trained run's margins, clusters, prototypes and decision plane: numbers, figures and a summary.

Shape legend: N rows, H shared width, C classes.
"""

from __future__ import annotations

import numpy as np

from uml_core.analysis.margin_figures import PlaneRows, margin_histogram, plane_scatter, prototype_heat_map
from uml_core.analysis.margins import (
    cluster_quality,
    decision_plane,
    functional_margins,
    most_confused,
    prototype_cosines,
)
from uml_core.analysis.result import AnalysisResult
from uml_core.analysis.shared_space import Floats, TrainedRun, class_means
from uml_core.errors import InputError
from uml_core.figures.drawing import ReportFigure, drawn

PREFIX = "analysis/margins"


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
        if quality is not None:
            metrics[f"{PREFIX}/silhouette{suffix}"] = quality.silhouette
            metrics[f"{PREFIX}/davies_bouldin{suffix}"] = quality.davies_bouldin
            clusters.append(
                f"{words}: silhouette {quality.silhouette:.3f}, Davies-Bouldin {quality.davies_bouldin:.2f}"
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
        cosines_CC = _prototype_cosines(run, corpus)
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
        first, second = (run.class_code(name) for name in run.plane_classes)
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
    rows = PlaneRows(labels_N[chosen_N], is_held_out_N[chosen_N], names, (first, second))
    right_N = ((plane.across > 0) == (rows.labels == first))[rows.held_out]
    share = f"{right_N.mean():.1%} of their {len(right_N)}" if len(right_N) else "none of their 0"
    line = (
        f"decision plane of {names[0]} and {names[1]} ({why}): {share} {run.held_out_words} rows lie on the right "
        f"side; the plane shows {plane.shown_variance:.0%} of their variance"
    )
    caption = (
        f"{names[0]} against {names[1]} ({why}) in the plane of their head rows' difference and the first principal "
        f"direction orthogonal to it, which holds {plane.shown_variance:.0%} of these rows' variance."
    )
    figure = drawn("decision_plane", plane_scatter(plane, rows), caption=caption, alternative=line)
    metrics = {"analysis/decision_plane/right_side_share": float(right_N.mean())} if len(right_N) else {}
    return AnalysisResult(metrics, (figure,), summary=(line,))


def _prototype_cosines(run: TrainedRun, corpus: str) -> Floats:
    rows = run.data.train[corpus]
    means_CH = class_means(run.embeddings(corpus, rows), rows.labels, len(run.data.classes))
    return prototype_cosines(run.head(corpus), means_CH)
