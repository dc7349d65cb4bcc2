"""The registry of analyses: what explains a trained run, by name.

In: a `TrainedRun` and names. Out: each analysis's metrics, figures, tables and lines. A new analysis is one entry here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from uml_core.analysis.explain_alignment import explain_alignment
from uml_core.analysis.explain_gradients import explain_gradients
from uml_core.analysis.explain_margins import explain_decision_plane, explain_margins, explain_prototypes
from uml_core.analysis.explain_neurons import explain_neurons
from uml_core.analysis.result import AnalysisResult
from uml_core.analysis.shared_space import TrainedRun
from uml_core.errors import InputError, listing, nearest

ANALYSES: dict[str, Callable[[TrainedRun], AnalysisResult]] = {
    "margins": explain_margins,
    "prototypes": explain_prototypes,
    "decision_plane": explain_decision_plane,
    "gradients": explain_gradients,
    "alignment": explain_alignment,
    "neurons": explain_neurons,
}
ALL = "all"


def chosen_analyses(text: str) -> tuple[str, ...]:
    """Return the analyses of a comma-separated list, or every one for `all`.

    Raises:
        InputError: a name is unknown, or there is none.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise InputError(f"--analyses is empty; analyses are {listing(ANALYSES)}, or {ALL}")
    if names == (ALL,):
        return tuple(ANALYSES)
    for name in names:
        if name not in ANALYSES:
            hint = nearest(name, (*ANALYSES, ALL))
            raise InputError(f"--analyses names '{name}'; analyses are {listing(ANALYSES)}, or {ALL}{hint}")
    return tuple(dict.fromkeys(names))


def explain(run: TrainedRun, names: Sequence[str]) -> dict[str, AnalysisResult]:
    """Return the results of some analyses, by name. Raises InputError for a target of one class."""
    if len(run.data.classes) < 2:
        raise InputError(f"the target has one class ({run.data.classes[0]}): nothing to tell apart, nothing to analyse")
    return {name: ANALYSES[name](run) for name in names}
