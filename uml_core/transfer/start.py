"""Starting a trunk from a text model's blocks, and freezing them: what the two objectives call.

    python -m uml_core.transfer EXPERIMENT.yaml [key=value ...]      # the table of tensors, before any training

Frozen parameters take part in a step's forward pass without a gradient, and the optimiser skips them (their moments and
their weight decay too). They stay the model's parameters all the time, so optimiser and checkpoint have one layout.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from uml_core.config import Experiment
from uml_core.config.corpora import RANDOM_WEIGHTS
from uml_core.transfer.plan import TransferPlan, own_trunk, plan_transfer, vit_trunk

if TYPE_CHECKING:
    from uml_core.encoders.torch_encoder import TrainableEncoder


@dataclass(frozen=True)
class Frozen:
    """Parameters that are not trained in the first `steps` steps."""

    parameters: tuple[nn.Parameter, ...] = ()
    steps: int = 0

    def at(self, step: int) -> tuple[nn.Parameter, ...]:
        return self.parameters if step < self.steps else ()


@contextlib.contextmanager
def without_gradients(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Leave some parameters out of the graph that a forward pass builds."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def load_backbone(experiment: Experiment, encoder: TrainableEncoder, device: str) -> None:
    """Load the weights of an encoder that is to be trained; random ones are drawn by the experiment's seed."""
    if encoder.config.weights == RANDOM_WEIGHTS:
        encoder.load_random(experiment.seed, device=device)
    else:
        encoder.load_trainable(device=device)


def start_blocks(experiment: Experiment, module: nn.Module) -> Frozen:
    """Start the blocks of the target's encoder, or of the shared trunk, as `model.transfer` says.

    Returns what stays frozen for the first steps. What stays frozen to the end requires no gradient any more.

    Raises:
        InputError: the source cannot be loaded, or does not fit the trunk.
    """
    config, plan = experiment.model.transfer, transfer_plan(experiment, module)
    if config is None or plan is None:
        return Frozen()
    parameters = plan.apply(module, config, seed=experiment.seed)
    if config.freeze_steps != "all":
        return Frozen(parameters, config.freeze_steps)
    for parameter in parameters:
        parameter.requires_grad_(False)
    return Frozen()


def transfer_plan(experiment: Experiment, module: nn.Module | None = None) -> TransferPlan | None:
    """What `model.transfer` copies into the target's encoder or the shared trunk; None where it is not set.

    Without a module it is planned for one without memory for its weights.

    Raises:
        InputError: the source cannot be loaded, or does not fit the trunk.
    """
    config = experiment.model.transfer
    if config is None:
        return None
    from uml_core.transfer.sources import load_source  # transformers takes seconds

    if experiment.objective == "self_supervised":
        trunk = own_trunk(experiment.sequence_model)
    else:
        settings = experiment.encoder_of(experiment.target)
        assert settings is not None, "refused with the experiment"
        if module is None:
            from uml_core.encoders import build_encoder  # encoders take seconds

            encoder: Any = build_encoder(settings, "image")
            module = encoder.skeleton
        trunk = vit_trunk(settings.name, module)
    return plan_transfer(load_source(config.source), trunk, config)
