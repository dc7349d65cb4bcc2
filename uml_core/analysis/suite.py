"""The registry of analyses: what explains a trained run, by name.

In: a `TrainedRun` and names. Out: each analysis's metrics, figures, tables and lines. A new analysis is one entry here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from uml_core.analysis.alignment import explain_alignment
from uml_core.analysis.explain_neurons import explain_neurons
from uml_core.analysis.label_errors import explain_labels
from uml_core.analysis.margins import explain_decision_plane, explain_margins, explain_prototypes
from uml_core.analysis.mistakes import explain_mistakes
from uml_core.analysis.shared_space import AnalysisResult, TrainedRun
from uml_core.errors import InputError, listing, nearest
from uml_core.feed.embeddings import gathered
from uml_core.gradients.autograd import gradient_cosines
from uml_core.gradients.batch import Batch
from uml_core.models import build_model


def explain_gradients(run: TrainedRun) -> AnalysisResult:
    """Compare each auxiliary corpus's gradient on the shared head with the target's, over whole train sets.

    At the start it says which way a corpus pushes the head; at the end both gradients are nearly used up, so a value
    near −1 there means that the two losses hold each other in balance, not that the corpus harms.
    """
    device = next(run.model.parameters()).device
    tensors = {corpus: gathered(rows, device) for corpus, rows in run.data.train.items()}
    embeddings = {corpus: embedding_ND for corpus, (embedding_ND, _) in tensors.items()}
    if run.experiment.model.normalize:
        embeddings = {corpus: nn.functional.normalize(value, dim=-1) for corpus, value in embeddings.items()}
    labels = {corpus: labels_N for corpus, (_, labels_N) in tensors.items()}
    batch = Batch(embeddings, labels, {corpus: len(value) for corpus, value in labels.items()})
    at_start = gradient_cosines(build_model(run.experiment, run.data), batch, run.data.target)
    at_end = gradient_cosines(run.model, batch, run.data.target)
    metrics: dict[str, float] = {}
    summary = []
    for corpus, cosine in at_start.items():
        metrics[f"analysis/gradients/{corpus}/cosine_at_start"] = cosine
        metrics[f"analysis/gradients/{corpus}/cosine_at_end"] = at_end[corpus]
        note = "" if run.experiment.is_active(corpus) else " (takes no part in this run's steps)"
        summary.append(
            f"gradients on the shared head, {run.data.target} against {corpus}{note}: cosine {cosine:+.3f} before "
            f"training, {at_end[corpus]:+.3f} after it"
        )
    return AnalysisResult(metrics, summary=tuple(summary))


ANALYSES: dict[str, Callable[[TrainedRun], AnalysisResult]] = {
    "margins": explain_margins,
    "prototypes": explain_prototypes,
    "decision_plane": explain_decision_plane,
    "gradients": explain_gradients,
    "alignment": explain_alignment,
    "neurons": explain_neurons,
    "mistakes": explain_mistakes,
    "labels": explain_labels,
}
FOR_ANY_HEAD = ("mistakes", "labels")
ALL = "all"


def chosen_analyses(names: Sequence[str]) -> Sequence[str]:
    """The analyses of these names, or every one for `all`. Raises InputError for an unknown name."""
    if list(names) == [ALL]:
        return tuple(ANALYSES)
    for name in names:
        if name not in ANALYSES:
            hint = nearest(name, (*ANALYSES, ALL))
            raise InputError(f"--analyses names '{name}'; analyses are {listing(ANALYSES)}, or {ALL}{hint}")
    return names


def explain(run: TrainedRun, names: Sequence[str]) -> dict[str, AnalysisResult]:
    """The results of some analyses, by name. Raises InputError for a solved head, but for those that read no head."""
    of_shared_head = [name for name in names if name not in FOR_ANY_HEAD]
    if run.experiment.model.head != "paper" and of_shared_head:
        raise InputError(
            f"model.head is {run.experiment.model.head}: --analyses {','.join(of_shared_head)} look at a head that "
            "corpora share, and no other corpus goes through this one; analyse a run with model.head=paper, or ask for "
            f"{','.join(FOR_ANY_HEAD)} alone"
        )
    return {name: ANALYSES[name](run) for name in names}
