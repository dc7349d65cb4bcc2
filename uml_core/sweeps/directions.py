"""Each corpus as the target in turn: the same experiment, seen from every side.

In: an experiment. Out: the experiments in which another corpus is the target, and the old target an auxiliary corpus.
A tune space cannot hold them: its arms are subsets of the auxiliary corpora, and those differ with the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from uml_core.config import Experiment
from uml_core.errors import InputError, listing, nearest


def with_target(experiment: Experiment, target: str) -> Experiment:
    """The experiment with another target; what was set for it as an auxiliary corpus no longer applies."""
    if target == experiment.target:
        return experiment
    mixing, data = experiment.mixing, experiment.data
    changes: dict[str, Any] = {
        "target": target,
        "mixing.loss_weight": _without(target, mixing.model_dump(mode="json")["loss_weight"]),
        "mixing.batch_ratio": _without(target, mixing.batch_ratio),
        "data.auxiliary_shots": _without(target, data.auxiliary_shots),
        "data.subset": None,  # names rows of the old target
    }
    if experiment.model.init_corpus == target:
        changes["model.init_corpus"] = None
    return experiment.override(changes)


def chosen_targets(experiment: Experiment, names: Sequence[str] = ()) -> list[str]:
    """The corpora that are to be the target in turn, the experiment's own last.

    By default every corpus that is no control and no shifted test set. The experiment's own target is last, so that
    models:/EXPERIMENT@best is in the end a model of it.

    Raises:
        InputError: a name is no such corpus, or fewer than three corpora take part.
    """
    shifted, corpora = experiment.shifted_corpora, experiment.corpora
    known = [name for name, corpus in corpora.items() if corpus.control == "none" and name not in shifted]
    for name in names:
        if name not in known:
            raise InputError(
                f"--targets names '{name}'{nearest(name, known)}; corpora that can be one: {listing(known)}"
            )
    if len(known) < 3:
        raise InputError(
            f"directions compares all subsets of two auxiliary corpora or more around each target, and experiment "
            f"{experiment.name} has {len(known)} corpora that are no controls; add one, or use space controls"
        )
    return sorted(dict.fromkeys(names or known), key=lambda name: name == experiment.target)


def _without(name: str, values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}
