"""Which way auxiliary corpora push the shared head, beside the target."""

from __future__ import annotations

from torch import nn

from uml_core.analysis.shared_space import AnalysisResult, TrainedRun
from uml_core.feed.embeddings import gathered
from uml_core.gradients.autograd import gradient_cosines
from uml_core.gradients.batch import Batch
from uml_core.models.shared_head import build_model


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
