"""Do unpaired sequences help a self-supervised trunk, and is it what they hold that helps? (objective self_supervised)

All arms have the same model, steps, target batches and search budget, over paired seeds: the target alone (λ = 0), all
corpora, noise in place of the auxiliary tokens, and an unrelated corpus where the experiment has one (control:
unrelated). Of the curricula, one arm trains its first third on the target alone and one on an auxiliary corpus alone,
which leaves it two thirds of the target batches (docs/method.md, Self-supervised); `untrained` is the trunk as
initialised, under the same probe.
"""

from __future__ import annotations

from uml_core.config import Experiment
from uml_core.errors import InputError
from uml_core.sweeps.arms import weights_of
from uml_core.sweeps.space import Arm, Space, lr_grid, related_auxiliaries, seeds_of, shots_conditions

WARM_SHARE = 3  # a third of the steps


def build(experiment: Experiment) -> Space:
    if experiment.objective != "self_supervised":
        raise InputError(
            f"space self_supervised is for objective self_supervised, and the experiment's is {experiment.objective}; "
            "set objective=self_supervised, or take space controls"
        )
    related = related_auxiliaries(experiment)
    unrelated = [name for name in experiment.auxiliaries if name not in related]
    cotrained = {"mixing.loss_weight": weights_of(experiment, related), "mixing.warm_start": {}}
    alone = {"mixing.loss_weight": weights_of(experiment, ()), "mixing.warm_start": {}}
    steps = experiment.train.max_steps // WARM_SHARE
    arms = [
        Arm("unimodal", alone, says="the matched baseline: same model, steps and target batches, λ = 0."),
        Arm("uml", cotrained, says="the target's sequences and the auxiliary ones train one trunk (λ > 0)."),
        Arm(
            "noise",
            {**cotrained, **{f"corpora.{name}.control": "noise" for name in related}},
            says="as uml, with noise of the same mean and scale in place of the auxiliary tokens.",
            role="noise",
        ),
        Arm("untrained", {**alone, "train.max_steps": 0}, says="the trunk as it is initialised, under the same probe."),
        *(
            Arm(
                name,
                {**cotrained, "mixing.warm_start": {"corpus": corpus, "steps": steps}},
                says=f"as uml, with the first {steps} steps on {corpus} alone.",
                role="method",
            )
            for name, corpus in (("uml_target_first", experiment.target), ("uml_auxiliary_first", related[0]))
        ),
    ]
    if unrelated:
        swapped = {name: float(name in unrelated) for name in experiment.auxiliaries}
        says = "as uml, with an auxiliary corpus about something else."
        overrides = {"mixing.loss_weight": swapped, "mixing.warm_start": {}}
        arms.append(Arm("unrelated", overrides, says=says, role="unrelated"))
    return Space(
        question=f"Do sequences of {' and '.join(related)} help {experiment.target} without labels?",
        arms=tuple(arms),
        baseline="unimodal",
        headline="uml",
        seeds=seeds_of(experiment),
        conditions=shots_conditions(experiment),
        grid=lr_grid(experiment),
        needs=("noise",),  # nothing here reads labels, so shuffling them would control nothing
    )
