"""Which head without training to ship, and what are unpaired data worth in it, over shuffled names?

Every arm is solved, or stays as it starts, and so a verdict takes seconds: ridge, the discriminant and logistic
regression on the target alone (and with its unlabelled pile), the untrained zero-shot head, the head whose prior the
auxiliary corpora write, and its controls. Whether training on them gains more, space `controls` tells.
"""

from __future__ import annotations

from uml_core.config import Experiment
from uml_core.sweeps.arms import alone_arms, standard_arms
from uml_core.sweeps.space import Space, related_auxiliaries, seeds_of, shots_conditions


def build(experiment: Experiment) -> Space:
    question, baseline, headline = f"Which head in closed form for {experiment.target}?", "ridge", "discriminant"
    arms, needs = alone_arms(experiment), ()
    if experiment.auxiliaries:
        related = " and ".join(related_auxiliaries(experiment))
        question = f"What are {related} worth to a head in closed form for {experiment.target}?"
        arms, needs = list(standard_arms(experiment).values()), ("shuffled_prior",)
        baseline, headline = "discriminant", "prior"
    return Space(
        question,
        tuple(arm for arm in arms if arm.takes_no_step),
        baseline,
        headline,
        seeds=seeds_of(experiment),
        conditions=shots_conditions(experiment),
        needs=needs,
    )
