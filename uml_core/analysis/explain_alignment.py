"""Alignment of each auxiliary corpus with the target, as encoded and in the trained shared space.

Over class means: the target's held-out rows against the corpus's train rows, classes that both have. With true pairs
(`--pairs`), over those rows instead. Training on the same labels pulls class means together, so the shared space says
how far training went; what was there before is the value as encoded.
"""

from __future__ import annotations

import numpy as np

from uml_core.analysis.alignment import cka, mutual_knn
from uml_core.analysis.result import AnalysisResult
from uml_core.analysis.shared_space import Floats, TrainedRun, class_means, shared_embeddings
from uml_core.data.labelled_rows import LabelledRows

MIN_ROWS = 4  # unbiased CKA is defined from here on
NEIGHBOURS = 10


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
            found[space] = (cka(target_ND, other_NE, unbiased=True), mutual_knn(target_ND, other_NE, k=neighbours))
            for name, value in zip(("cka", "mutual_knn"), found[space], strict=True):
                if np.isfinite(value):  # NaN: one side does not vary
                    metrics[f"analysis/alignment/{corpus}/{space}/{name}"] = value
        words = ", ".join(f"{space} CKA {values[0]:.3f}, k-NN {values[1]:.3f}" for space, values in found.items())
        summary.append(f"alignment of {run.data.target} and {corpus} over {over}: {words or 'too few to tell'}")
    return AnalysisResult(metrics, summary=tuple(summary))


def _matched_rows(run: TrainedRun, corpus: str) -> tuple[str, dict[str, tuple[Floats, Floats]]]:
    """Return in words what is matched, and the two sides as encoded and in the shared space."""
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
    """Return the class means of both sides, of the classes that both have."""
    num_classes = len(run.data.classes)
    means_CD = class_means(target_ND, target.labels, num_classes)
    means_CE = class_means(other_NE, other.labels, num_classes)
    both_C = np.isfinite(means_CD).all(axis=1) & np.isfinite(means_CE).all(axis=1)
    return means_CD[both_C], means_CE[both_C]
