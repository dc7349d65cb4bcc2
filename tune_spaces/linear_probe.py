"""Does the unpaired data help once both sides have searched the paper's hyperparameters?

The paper's linear-probe grid for every arm: learning rate × weight decay × batch size × learnable scale, 24 points
(docs/method.md, Supervised). Arms with λ > 0 also search λ, and so have more points than the others: each arm trains
the same number of them, the larger grids thinned at random. Batches of 8 see a quarter of the samples that batches of
32 do; every arm may choose either.
"""

from __future__ import annotations

from dataclasses import replace

from uml_core.config import Experiment
from uml_core.sweeps.arms import alone_space, deciding_arms, deciding_space, standard_arms, weights_of
from uml_core.sweeps.space import Arm, Space, related_auxiliaries

LEARNING_RATES = (1e-3, 1e-4)
WEIGHT_DECAYS = (0.0, 0.01, 0.001)
BATCH_SIZES = (8, 32)
LOSS_WEIGHTS = (0.3, 0.5, 0.7, 1.0, 1.5)  # the paper's λ grid without 0, which is the baseline


def build(experiment: Experiment) -> Space:
    grid = {
        "optim.lr": experiment.tune.lr or LEARNING_RATES,
        "optim.weight_decay": WEIGHT_DECAYS,
        "train.batch_size": BATCH_SIZES,
        "model.learnable_scale": (False, True),
    }
    if not experiment.auxiliaries:
        return alone_space(experiment, grid=grid)
    related, arms = related_auxiliaries(experiment), standard_arms(experiment)
    weights = experiment.tune.loss_weights or LOSS_WEIGHTS
    mixtures = tuple({**weights_of(experiment, ()), **dict.fromkeys(related, weight)} for weight in weights)

    def searched(arm: Arm) -> Arm:
        mixes = arm.role in ("method", "shuffled") and not arm.is_solved
        return replace(arm, grid={"mixing.loss_weight": mixtures}) if mixes else arm

    return deciding_space(
        experiment,
        question=f"Do {' and '.join(related)} help {experiment.target} when every arm searches the paper's grid?",
        arms=[searched(arms[name]) for name in deciding_arms(experiment)],
        grid=grid,
    )
