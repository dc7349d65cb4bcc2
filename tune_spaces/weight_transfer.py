"""Do a text model's weights help a trunk of another modality, trained or frozen, and is it what they learnt?

Arms, over paired seeds and with equal steps and search (docs/method.md, Analyses): blocks from scratch, from
the text model (`model.transfer`), and with the text model's values in an order drawn by lot; each of them trained from
the first step, and frozen to the end. One more is frozen for model.transfer.freeze_steps steps (a quarter of all where
that is no number above 0), then trained.

The claim is `transferred` against `scratch`; with model.transfer.freeze_steps=all, `transferred_frozen` against
`scratch_frozen`. `shuffled` is the control: it has the right scale of every tensor, and nothing else.
"""

from __future__ import annotations

from typing import Any

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

    def arm(name: str, overrides: dict[str, Any], says: str, **others: Any) -> Arm:
        return Arm(name, {f"model.transfer.{key}": value for key, value in overrides.items()}, says=says, **others)

    blocks, order = "blocks from the text model", "the text model's values in an order drawn by lot"
    trained, frozen = "trained from the first step", "frozen to the end"
    arms = (
        Arm("scratch", {"model.transfer": None}, says=f"blocks as they are initialised, {trained}."),
        arm("transferred", {"freeze_steps": 0, "control": "none"}, f"{blocks}, {trained}."),
        arm(
            "shuffled",
            {"freeze_steps": 0, "control": "shuffled"},
            f"{order}, {trained}: the scale of every tensor, and nothing else.",
            role="shuffled",
            controls="transferred",
        ),
        arm(
            "frozen_then_trained",
            {"freeze_steps": thaw, "control": "none"},
            f"{blocks}, frozen for {thaw} steps and then trained.",
        ),
        arm("scratch_frozen", {"freeze_steps": "all", "control": "scratch"}, f"blocks as initialised, {frozen}."),
        arm("transferred_frozen", {"freeze_steps": "all", "control": "none"}, f"{blocks}, {frozen}."),
        arm(
            "shuffled_frozen",
            {"freeze_steps": "all", "control": "shuffled"},
            f"{order}, {frozen}.",
            role="shuffled",
            controls="transferred_frozen",
        ),
    )
    suffix = "_frozen" if asked == "all" else ""
    return Space(
        question=f"Do weights of {transfer.source} help {experiment.target}, and is it what they learnt?",
        arms=arms,
        baseline=f"scratch{suffix}",
        headline=f"transferred{suffix}",
        seeds=seeds_of(experiment),
        conditions=shots_conditions(experiment),
        grid=lr_grid(experiment),
        needs=(f"shuffled{suffix}",),
        subject="the text model's weights",
    )
