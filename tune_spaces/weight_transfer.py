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
    """Return the arms for an experiment with a weight transfer. Raises InputError for one without."""
    transfer = experiment.model.transfer
    if transfer is None:
        raise InputError(
            f"space weight_transfer compares blocks from a text model with others, and experiment {experiment.name} "
            "has no model.transfer; give one: model.transfer.source=minilm_l6"
        )
    asked = transfer.freeze_steps
    thaw = asked if isinstance(asked, int) and asked else experiment.train.max_steps // THAW_SHARE

    def of(freeze_steps: int | str, control: str = "none") -> dict[str, Any]:
        return {"model.transfer.freeze_steps": freeze_steps, "model.transfer.control": control}

    arms = {
        "scratch": {"model.transfer": None},
        "transferred": of(0),
        "shuffled": of(0, "shuffled"),
        "frozen_then_trained": of(thaw),
        "scratch_frozen": of("all", "scratch"),
        "transferred_frozen": of("all"),
        "shuffled_frozen": of("all", "shuffled"),
    }
    suffix = "_frozen" if asked == "all" else ""
    return Space(
        question=f"Do weights of {transfer.source} help {experiment.target}, and is it what they learnt?",
        arms=tuple(Arm(name, overrides) for name, overrides in arms.items()),
        baseline=f"scratch{suffix}",
        headline=f"transferred{suffix}",
        seeds=seeds_of(experiment),
        conditions=shots_conditions(experiment),
        grid=lr_grid(experiment),
    )
