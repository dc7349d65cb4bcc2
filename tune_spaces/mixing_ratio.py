"""How much of the unpaired data should be mixed in, and when?

Arm uml searches what tune.mixing names: loss weight λ and batch ratio (docs/method.md, Supervised: the ratio hardly
matters in the paper), the schedule (joint or alternate), and a warm start on the target or on an auxiliary corpus alone
for a share of the steps (docs/method.md, Self-supervised: the curricula). λ and ratio are the same for all corpora, or
with tune.per_corpus each corpus has its own. Arm unimodal (λ = 0) has none of this to search: it trains as many
learning rates around optim.lr, so that the best of many is taken on both sides. Where auxiliary corpora warm up it
searches that as well, idle in their steps: the number of target batches is then a choice of both sides.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from uml_core.config import Experiment
from uml_core.sweeps.arms import weights_of
from uml_core.sweeps.space import Arm, Grid, Space, lr_grid, product_of, related_auxiliaries, seeds_of, shots_conditions

LOSS_WEIGHTS = (0.1, 0.3, 1.0)
BATCH_RATIOS = (0.5, 1.0, 2.0)
WARM_STARTS = (0.25,)  # shares of max_steps, beside no warm start at all
LR_DECADES = 1.0  # unimodal searches learning rates a decade down and a decade up


def build(experiment: Experiment) -> Space:
    related = related_auxiliaries(experiment)
    off = {"mixing.loss_weight": weights_of(experiment, ())}
    unrelated = {name: 0.0 for name in experiment.auxiliaries if name not in related}
    grid = {axis: _axis(axis, experiment, related, unrelated) for axis in experiment.tune.mixing}
    mixtures = {key: values for axis in grid.values() for key, values in axis.items()}
    rates = lr_grid(experiment)
    num_points = len(product_of({**mixtures, **rates}))
    return Space(
        question=f"How much of {' and '.join(related)} should be mixed into {experiment.target}?",
        arms=(
            # The head is left as the file has it, so these are not the arms of space controls.
            Arm(
                "unimodal",
                off,
                _baseline_grid(experiment, mixtures, num_points),
                says="auxiliary loss weight λ = 0, searched over learning rates, all else as in the experiment file.",
            ),
            Arm(
                "uml",
                {"mixing.loss_weight": weights_of(experiment, related)},
                {**mixtures, **rates},
                says="λ > 0, searched over loss weights, batch ratios and what else was named, all else as in the "
                "file.",
            ),
        ),
        baseline="unimodal",
        headline="uml",
        seeds=seeds_of(experiment),
        conditions=shots_conditions(experiment),
        needs=(),  # the best of many mixtures is no claim; space controls decides
    )


def _axis(axis: str, experiment: Experiment, related: tuple[str, ...], unrelated: dict[str, float]) -> dict[str, Any]:
    """The keys and values of one axis of the mixture."""
    tune, key = experiment.tune, f"mixing.{axis}"
    if axis == "schedule":
        return {key: ("joint", "alternate")}
    if axis == "warm_start":
        shares, corpora = tune.warm_starts or WARM_STARTS, (experiment.target, *related)
        steps = [round(share * experiment.train.max_steps) for share in shares]
        return {key: ({}, *({"corpus": corpus, "steps": count} for corpus in corpora for count in steps if count))}
    amounts = (tune.loss_weights or LOSS_WEIGHTS) if axis == "loss_weight" else (tune.batch_ratios or BATCH_RATIOS)
    if tune.per_corpus:
        return {f"{key}.{name}": amounts for name in related}
    others = unrelated if axis == "loss_weight" else {}
    return {key: tuple({**dict.fromkeys(related, amount), **others} for amount in amounts)}


def _baseline_grid(experiment: Experiment, mixtures: dict[str, Grid], num_points: int) -> dict[str, Grid]:
    """At least as many points for arm unimodal: learning rates, under every number of idle steps."""
    key = "mixing.warm_start"
    waits = {each.get("steps", 0): each for each in mixtures.get(key, ()) if each.get("corpus") != experiment.target}
    if not waits:
        return {"optim.lr": _rates_around(experiment.optim.lr, num_points)}
    num_rates = max(3, -(-num_points // len(waits)))  # three have the experiment's own among them
    return {"optim.lr": _rates_around(experiment.optim.lr, num_rates), key: tuple(waits.values())}


def _rates_around(rate: float, count: int) -> Grid:
    """That many learning rates, spread evenly by their logarithm; a single one is the experiment's own."""
    exponents = np.linspace(-LR_DECADES, LR_DECADES, count) if count > 1 else np.zeros(1)
    return tuple(float(f"{rate * 10**exponent:.4g}") for exponent in exponents)
