"""How much of the unpaired data should be mixed in?

Loss weight λ × batch ratio, the same for all auxiliary corpora, against λ = 0 (PAPER.md section 2: the paper finds the
ratio insensitive). The uml arm searches its grid on validation while unimodal has nothing to search, so the difference
between the two is an upper bound; space `controls` compares at equal budgets.
"""

from __future__ import annotations

from tune_spaces.space import Arm, Space, related_auxiliaries, seeds_of, shots_conditions
from uml_core.config import Experiment

LOSS_WEIGHTS = (0.1, 0.3, 1.0)
BATCH_RATIOS = (0.5, 1.0, 2.0)


def build(experiment: Experiment) -> Space:
    """Return the arms unimodal (λ = 0) and uml, whose grid is λ × ratio."""
    related = related_auxiliaries(experiment)
    unrelated = {name: 0.0 for name in experiment.auxiliaries if name not in related}
    off = {"mixing.loss_weight": dict.fromkeys(experiment.auxiliaries, 0.0), "mixing.warm_start": {}}
    grid = {
        "mixing.loss_weight": tuple({**dict.fromkeys(related, weight), **unrelated} for weight in LOSS_WEIGHTS),
        "mixing.batch_ratio": tuple(dict.fromkeys(related, ratio) for ratio in BATCH_RATIOS),
    }
    return Space(
        question=f"How much of {' and '.join(related)} should be mixed into {experiment.target}?",
        arms=(Arm("unimodal", off), Arm("uml", grid=grid)),
        baseline="unimodal",
        headline="uml",
        seeds=seeds_of(experiment),
        conditions=shots_conditions(experiment),
    )
