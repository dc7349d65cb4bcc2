"""The Gaussian study of the paper's figure 3, with the controls it lacks, and the exchange rate in its world.

    x = A_c (w ∘ z_c) + A_x z_x + ε     w is 1 for one shared dimension of ten, 0.05 for the rest
    y = B_c z_c' + B_y z_y + ε          z_c' is another draw than z_c: unpaired

A linear layer per modality (50 → 128), a shared encoder (128 → 128, ReLU, → 10), a shared decoder (10 → 128, ReLU,
→ 128) and a linear layer per modality back (128 → 50); mean squared error, Adam. The error that counts is X's on
validation data, where w is 1 for all: the dimensions that X hardly showed in training are there at full strength.

A and B are drawn independently and z anew for every sample, so the distribution of y says nothing about A: what Y does
for X here goes through the optimiser, not through information. That is why the controls decide. The exchange rate has
it the other way, as the theorems do: projections known, parameters fixed.

Shape legend: B batch, N samples, M observed numbers, C shared dimensions, H hidden width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from uml_core.theory.information import Modality, exchange_rate, pseudo_inverse
from uml_core.theory.request import EARLY_STEP, NUM_STEPS

SHARED_DIM, SPECIFIC_DIM, OBSERVED_DIM = 10, 5, 50
NOISE_VARIANCE, ATTENUATION = 0.09, 0.05
HIDDEN_WIDTH, BOTTLENECK = 128, 10
NUM_SAMPLES, NUM_VALIDATION, BATCH_SIZE, LEARNING_RATE = 10_000, 2_000, 512, 1e-3
MEASURED_AT = (100, 200, 300, 500, 700, EARLY_STEP, 1_400, 2_000, 2_800, 4_000, 5_000, 6_000, 7_000, NUM_STEPS)


@dataclass(frozen=True)
class Arm:
    """What an arm trains on: how much of N is X, samples of X a step, and what stands in for Y ("" for nothing)."""

    name: str
    share_x: float
    batch_size: int
    second: str
    words: str


ARMS = (
    Arm("X", 1.0, BATCH_SIZE, "", "N of X; the paper's baseline"),
    Arm("X+Y", 0.5, BATCH_SIZE, "real", "N/2 of X and N/2 of Y; the paper's method"),
    Arm("half X", 0.5, BATCH_SIZE, "", "N/2 of X and nothing else: the X that X+Y has"),
    Arm("X, double batch", 1.0, 2 * BATCH_SIZE, "", "N of X, as many samples a step as X+Y has"),
    Arm("X+permuted Y", 0.5, BATCH_SIZE, "permuted", "as X+Y, every coordinate of Y shuffled over samples on its own"),
    Arm("X+noise", 0.5, BATCH_SIZE, "noise", "as X+Y, with independent normal noise of Y's mean and variance for Y"),
)


@dataclass(frozen=True)
class Curve:
    """One arm's validation error on X (mean squared error per observed number) by step, for one seed."""

    arm: str
    seed: int
    errors: dict[int, float]


@dataclass(frozen=True)
class WorldFacts:
    """What is known in closed form about the projections of one seed, and for N samples.

    Attributes:
        rate_by_trace: tr(S_Y) / tr(S_X), how many X samples one Y sample replaces.
        rate_by_direction: the rate along each shared dimension (C,), the one X sees in full first.
        gain_half_y: how many times smaller the total variance of θc is with N/2 of X and N/2 of Y than with N of X.
        floor_as_trained: validation error of the best linear autoencoder of the same bottleneck, fitted to X as
            training shows it; where X alone can get to.
        floor_as_validated: the same, fitted to X as validation shows it; no linear autoencoder does better.
    """

    seed: int
    rate_by_trace: float
    rate_by_direction: tuple[float, ...]
    gain_half_y: float
    floor_as_trained: float
    floor_as_validated: float


class World:
    """The projections of one seed: shared (M, C) and specific of X and of Y, and how strongly X shows each of C."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        widths = (SHARED_DIM, SPECIFIC_DIM, SHARED_DIM, SPECIFIC_DIM)
        self.shared_x, self.specific_x, self.shared_y, self.specific_y = (
            torch.randn((OBSERVED_DIM, width), generator=generator) for width in widths
        )
        self.strength = torch.tensor([1.0] + [ATTENUATION] * (SHARED_DIM - 1))

    def sample_x(self, count: int, generator: torch.Generator, *, attenuated: bool) -> Tensor:
        """X (N, M), attenuated as in training or not, as in validation."""
        strength = self.strength if attenuated else torch.ones(SHARED_DIM)
        return _observations(self.shared_x, self.specific_x, strength, count, generator)

    def sample_y(self, count: int, generator: torch.Generator) -> Tensor:
        return _observations(self.shared_y, self.specific_y, torch.ones(SHARED_DIM), count, generator)


def _observations(
    shared: Tensor, specific: Tensor, strength_C: Tensor, count: int, generator: torch.Generator
) -> Tensor:
    z_shared, noise, z_specific = (
        torch.randn((count, width), generator=generator) for width in (SHARED_DIM, OBSERVED_DIM, SPECIFIC_DIM)
    )
    return (z_shared * strength_C) @ shared.T + z_specific @ specific.T + math.sqrt(NOISE_VARIANCE) * noise


class SharedAutoencoder(nn.Module):
    """Linear layers of its own for each modality around a shared encoder and decoder."""

    def __init__(self, modalities: Sequence[str]) -> None:
        super().__init__()
        # drawn first, so that every arm of a seed starts from the same shared weights
        widths = ((HIDDEN_WIDTH, HIDDEN_WIDTH), (HIDDEN_WIDTH, BOTTLENECK))
        self.enter, self.encode = (nn.Linear(*width) for width in widths)
        self.decode, self.leave = (nn.Linear(*width[::-1]) for width in reversed(widths))
        self.inputs, self.outputs = nn.ModuleDict(), nn.ModuleDict()
        for modality in modalities:
            self.inputs[modality] = nn.Linear(OBSERVED_DIM, HIDDEN_WIDTH)
            self.outputs[modality] = nn.Linear(HIDDEN_WIDTH, OBSERVED_DIM)

    def forward(self, batches: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The reconstruction (B, M) of each modality's batch (B, M)."""
        hidden_BH = torch.cat([_through(self.inputs[name], self.enter, x_BM) for name, x_BM in batches.items()])
        hidden_BH = functional.relu(self.decode(self.encode(functional.relu(hidden_BH))))
        parts = torch.split(hidden_BH, [len(x_BM) for x_BM in batches.values()])
        return {name: _through(self.leave, self.outputs[name], part) for name, part in zip(batches, parts, strict=True)}


def _through(first: nn.Module, second: nn.Module, x: Tensor) -> Tensor:
    """Two linear layers, weights multiplied first: the same function, 1.4 times as many steps a second."""
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    return functional.linear(x, second.weight @ first.weight, functional.linear(first.bias, second.weight, second.bias))


def train_arm(arm: Arm, seed: int, num_steps: int = NUM_STEPS) -> Curve:
    """Train one arm and measure X's validation error along the way.

    Arms of one seed share projections, data, initial shared weights and, for the same N, X's batches.
    """
    world, generator = World(seed), torch.Generator().manual_seed(10_000 + seed)
    x_NM = world.sample_x(NUM_SAMPLES, generator, attenuated=True)[: int(arm.share_x * NUM_SAMPLES)]
    validation_NM = world.sample_x(NUM_VALIDATION, generator, attenuated=False)
    tables = {"x": x_NM}
    if arm.second:
        tables["y"] = second_corpus(arm.second, world.sample_y(NUM_SAMPLES - len(x_NM), generator), generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SharedAutoencoder(tuple(tables))
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    orders = {name: torch.Generator().manual_seed(20_000 + 10_000 * index + seed) for index, name in enumerate(tables)}
    errors = {}
    for step in range(1, num_steps + 1):
        batches = {
            name: table[torch.randint(len(table), (arm.batch_size,), generator=orders[name])]
            for name, table in tables.items()
        }
        reconstructions = model(batches)
        loss = torch.stack([functional.mse_loss(reconstructions[name], x_BM) for name, x_BM in batches.items()]).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step in MEASURED_AT or step == num_steps:
            with torch.no_grad():
                errors[step] = float(functional.mse_loss(model({"x": validation_NM})["x"], validation_NM))
    return Curve(arm.name, seed, errors)


def second_corpus(kind: str, y_NM: Tensor, generator: torch.Generator) -> Tensor:
    """Y itself, Y with every coordinate shuffled on its own, or noise of Y's mean and variance."""
    if kind == "real":
        return y_NM
    if kind == "permuted":
        columns = [column[torch.randperm(len(column), generator=generator)] for column in y_NM.T]
        return torch.stack(columns, dim=1)
    return y_NM.mean() + y_NM.std() * torch.randn(y_NM.shape, generator=generator)


def world_facts(seed: int) -> WorldFacts:
    """Exchange rates, total variances and the errors of linear autoencoders, which project on leading eigenvectors."""
    world = World(seed)
    x, y = (modality.shared_information for modality in one_sample_each(world))
    shared, strength = world.shared_x.double().numpy(), world.strength.double().numpy()
    specific = world.specific_x.double().numpy()
    rest = specific @ specific.T + NOISE_VARIANCE * np.eye(OBSERVED_DIM)
    trained, validated = (shared * strength**2) @ shared.T + rest, shared @ shared.T + rest
    kept = [np.linalg.eigh(covariance)[1][:, -BOTTLENECK:] for covariance in (trained, validated)]
    floors = [np.trace(validated - basis @ basis.T @ validated) / OBSERVED_DIM for basis in kept]
    return WorldFacts(
        seed,
        exchange_rate(x, y),
        tuple(exchange_rate(x, y, axis) for axis in np.eye(SHARED_DIM)),
        float(np.trace(pseudo_inverse(x)) / np.trace(pseudo_inverse((x + y) / 2))),
        *map(float, floors),
    )


def one_sample_each(world: World) -> tuple[Modality, Modality]:
    """One sample of X, attenuated as in training, and one of Y."""
    designs = ((world.shared_x * world.strength, world.specific_x), (world.shared_y, world.specific_y))
    x, y = (Modality(shared.numpy(), own.numpy(), noise_std=math.sqrt(NOISE_VARIANCE)) for shared, own in designs)
    return x, y
