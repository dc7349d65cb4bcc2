"""The registry of analyses: what explains a trained run, by name.

In: a `TrainedRun` and names. Out: each analysis's metrics, figures, tables and lines. A new analysis is one entry here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from uml_core.errors import InputError, listing, nearest
from uml_core.plugins import imported_callable

if TYPE_CHECKING:
    from uml_core.analysis.shared_space import AnalysisResult, TrainedRun

ANALYSES = {
    "margins": "uml_core.analysis.margins:explain_margins",
    "prototypes": "uml_core.analysis.margins:explain_prototypes",
    "decision_plane": "uml_core.analysis.margins:explain_decision_plane",
    "gradients": "uml_core.analysis.gradients:explain_gradients",
    "alignment": "uml_core.analysis.alignment:explain_alignment",
    "neurons": "uml_core.analysis.explain_neurons:explain_neurons",
    "mistakes": "uml_core.analysis.mistakes:explain_mistakes",
    "labels": "uml_core.analysis.label_errors:explain_labels",
}  # imported when they are asked for: the command line names them
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
    return {name: imported_callable(ANALYSES[name], setting=name, kind=name)(run) for name in names}
