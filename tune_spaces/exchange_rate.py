"""How many auxiliary rows is one more target row worth?

Target shots (conditions) × auxiliary rows per class (arms) × seeds, as tune.shots and tune.auxiliary_shots have them.
An arm auxiliary_N takes at most N rows per class of every related auxiliary corpus; its subsets are nested and drawn by
the seed. No rows at all is arm unimodal: λ = 0 and a random head, so that nothing of the corpora is left.
All arms have the same steps, target batches and search budget (docs/method.md, Analyses).
"""

from __future__ import annotations

from uml_core.config import Experiment
from uml_core.errors import InputError
from uml_core.sweeps.arms import weights_of, without_auxiliaries
from uml_core.sweeps.space import Arm, Facts, Space, lr_grid, related_auxiliaries, seeds_of

SHOTS = (1, 2, 4, 8)
AUXILIARY_SHOTS = (0, 1, 2, 4, 8, 16)


def build(experiment: Experiment) -> Space:
    related = related_auxiliaries(experiment)
    shots = _amounts("tune.shots", experiment.tune.shots or SHOTS)
    amounts = _amounts("tune.auxiliary_shots", experiment.tune.auxiliary_shots or AUXILIARY_SHOTS)
    arms = tuple(_arm(experiment, related, amount) for amount in amounts)
    return Space(
        question=f"How many rows of {' and '.join(related)} is one more row of {experiment.target} worth?",
        arms=arms,
        baseline=arms[0].name,
        headline=arms[-1].name,
        seeds=seeds_of(experiment),
        conditions={"data.shots": shots},
        grid=lr_grid(experiment),
        needs=(),  # the slopes are the answer; space controls tells what it is that helps
    )


def _arm(experiment: Experiment, related: tuple[str, ...], amount: int) -> Arm:
    if amount == 0:
        says = "no auxiliary rows: λ = 0 and a random head, the projection kept."
        return Arm("unimodal", without_auxiliaries(experiment), says=says, facts=Facts(auxiliary_rows=0))
    return Arm(
        f"auxiliary_{amount}",
        {
            "mixing.loss_weight": weights_of(experiment, related),
            "data.auxiliary_shots": dict.fromkeys(related, amount),
        },
        says=f"at most {amount} rows per class of every auxiliary corpus.",
        facts=Facts(auxiliary_rows=amount),
    )


def _amounts(setting: str, given: tuple[int, ...]) -> tuple[int, ...]:
    amounts = tuple(sorted(set(given)))
    if len(amounts) < 2:
        raise InputError(
            f"{setting} is {list(given)}; space exchange_rate needs at least two different amounts, "
            f"for example {setting}=[1,4]"
        )
    return amounts
