"""Do a text model's weights help a trunk of another modality, trained or frozen, and is it what they learnt?

Arms, over paired seeds and with equal steps and search (docs/method.md, Analyses): blocks from scratch, from
the text model (`model.transfer`), and with the text model's values in an order drawn by lot; each of them trained from
the first step, and frozen to the end. One more is frozen for model.transfer.freeze_steps steps (a quarter of all where
that is no number above 0), then trained.

The claim is `transferred` against `scratch`; with model.transfer.freeze_steps=all, `transferred_frozen` against
`scratch_frozen`. `shuffled` is the control: it has the right scale of every tensor, and nothing else.
"""

from __future__ import annotations

from uml_core.config import Experiment
from uml_core.errors import InputError
from uml_core.sweeps.space import Arm, Space, lr_grid, seeds_of, shots_conditions

THAW_SHARE = 4  # a quarter of the steps


def build(experiment: Experiment) -> Space:
    transfer = experiment.model.transfer
    if transfer is None:
        raise InputError(
            f"space weight_transfer compares blocks from a text model with others, and experiment {experiment.name} "
            "has no model.transfer; give one: model.transfer.source=minilm_l6"
        )
    asked = transfer.freeze_steps
    thaw = asked if isinstance(asked, int) and asked else experiment.train.max_steps // THAW_SHARE

    blocks, order = "blocks from the text model", "the text model's values in an order drawn by lot"
    trained, frozen = "trained from the first step", "frozen to the end"
    arms = [Arm("scratch", {"model.transfer": None}, says=f"blocks as they are initialised, {trained}.")]
    for name, freeze_steps, control, says in (
        ("transferred", 0, "none", f"{blocks}, {trained}."),
        ("shuffled", 0, "shuffled", f"{order}, {trained}: the scale of every tensor, and nothing else."),
        ("frozen_then_trained", thaw, "none", f"{blocks}, frozen for {thaw} steps and then trained."),
        ("scratch_frozen", "all", "scratch", f"blocks as initialised, {frozen}."),
        ("transferred_frozen", "all", "none", f"{blocks}, {frozen}."),
        ("shuffled_frozen", "all", "shuffled", f"{order}, {frozen}."),
    ):
        overrides = {"model.transfer.freeze_steps": freeze_steps, "model.transfer.control": control}
        controls = name.replace("shuffled", "transferred") if control == "shuffled" else ""
        arms.append(Arm(name, overrides, says=says, role="shuffled" if controls else "", controls=controls))
    suffix = "_frozen" if asked == "all" else ""
    return Space(
        question=f"Do weights of {transfer.source} help {experiment.target}, and is it what they learnt?",
        arms=tuple(arms),
        baseline=f"scratch{suffix}",
        headline=f"transferred{suffix}",
        seeds=seeds_of(experiment),
        conditions=shots_conditions(experiment),
        grid=lr_grid(experiment),
        needs=(f"shuffled{suffix}",),
        subject="the text model's weights",
    )
