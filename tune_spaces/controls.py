"""Does the unpaired data help, and is it what the data says that helps?

Every arm has the same data, steps, target batches and search budget, over paired seeds (docs/method.md, Controls):
{random, text} initialisation × {λ = 0, λ > 0}, and the same with labels shuffled, with noise in place of the auxiliary
embeddings, and with text about something else where the experiment has such a corpus (control: unrelated).
"""

from __future__ import annotations

from uml_core.config import Experiment
from uml_core.sweeps.arms import alone_space, deciding_space, standard_arms
from uml_core.sweeps.space import Space, related_auxiliaries


def build(experiment: Experiment) -> Space:
    if not experiment.auxiliaries:
        return alone_space(experiment)
    related = related_auxiliaries(experiment)
    return deciding_space(
        experiment,
        question=f"Do {' and '.join(related)} help {experiment.target}, and is it what they say that helps?",
        arms=standard_arms(experiment).values(),
    )
