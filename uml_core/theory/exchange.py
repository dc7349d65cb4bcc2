"""The theoretical exchange rate in the world of the paper's figure 3: how many X samples one Y sample replaces.

X sees one shared dimension at full strength and the others at a twentieth, Y sees all (`autoencoder.World`). Here the
projections are known and the parameters fixed, as the theorems have it; the autoencoder study has it the other way.

Shape legend: C shared dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uml_core.theory.autoencoder import World, draw_world
from uml_core.theory.directions import exchange_rate
from uml_core.theory.information import joint_covariance
from uml_core.theory.model import Modality

NUM_SAMPLES = 10_000


@dataclass(frozen=True)
class ExchangeResult:
    """Exchange rates of one draw of the projections, and what they come to for N samples.

    Attributes:
        by_trace: tr(S_Y) / tr(S_X).
        by_direction: the rate along each shared dimension (C,), the one X sees in full first.
        x_only: total variance of θc with N samples of X.
        half_and_half: the same with N/2 of X and N/2 of Y.
    """

    seed: int
    by_trace: float
    by_direction: tuple[float, ...]
    x_only: float
    half_and_half: float


def exchange_of(seed: int, *, num_samples: int = NUM_SAMPLES) -> ExchangeResult:
    """Return the exchange rates of the world of a seed."""
    world = draw_world(seed)
    of_x, of_y = (modality.shared_information for modality in modalities_of(world))
    axes = np.eye(len(of_x))
    half = num_samples / 2
    return ExchangeResult(
        seed,
        exchange_rate(of_x, of_y),
        tuple(exchange_rate(of_x, of_y, axis) for axis in axes),
        float(np.trace(joint_covariance(num_samples * of_x))),
        float(np.trace(joint_covariance(half * of_x, half * of_y))),
    )


def modalities_of(world: World) -> tuple[Modality, Modality]:
    """Return one sample of X, attenuated as in training, and one of Y."""
    shared_x = world.shared_x.double().numpy() * world.attenuation.double().numpy()
    std = world.noise_std
    return (
        Modality.of(shared_x, world.specific_x.double().numpy(), noise_std=std),
        Modality.of(world.shared_y.double().numpy(), world.specific_y.double().numpy(), noise_std=std),
    )
