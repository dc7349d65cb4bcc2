"""Up to how many labelled samples per class does the unpaired data help?

Shots (1, 2, 4, 8, 16, or tune.shots) × seeds × the fewest arms a verdict rests on: the plain linear probe, the matched
baseline, the method, and its control with shuffled labels (docs/method.md, Supervised). The subsets are nested;
with data.val_shots=same validation has min(4, shots) samples per class, as in the paper. Space `controls` has every
control.
"""

from __future__ import annotations

from uml_core.config import Experiment
from uml_core.sweeps.arms import alone_space, deciding_arms, deciding_space, standard_arms
from uml_core.sweeps.space import Space, related_auxiliaries

SHOTS = (1, 2, 4, 8, 16)


def build(experiment: Experiment) -> Space:
    conditions = {"data.shots": tuple(sorted(set(experiment.tune.shots or SHOTS)))}
    if not experiment.auxiliaries:
        return alone_space(experiment, conditions=conditions)
    related, arms = related_auxiliaries(experiment), standard_arms(experiment)
    return deciding_space(
        experiment,
        question=f"Up to how many labelled samples per class do {' and '.join(related)} help {experiment.target}?",
        arms=[arms[name] for name in deciding_arms(experiment)],
        conditions=conditions,
    )
