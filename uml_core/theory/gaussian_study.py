"""The Gaussian study of the paper's figure 3, with the controls it lacks, and the exchange rate in its world.

    x = A_c (w ∘ z_c) + A_x z_x + ε     w is 1 for one shared dimension of ten, 0.05 for the rest
    y = B_c z_c' + B_y z_y + ε          z_c' is another draw than z_c: unpaired

A linear layer per modality (50 → 128), a shared encoder (128 → 128, ReLU, → 10), a shared decoder (10 → 128, ReLU,
→ 128) and a linear layer per modality back (128 → 50); mean squared error, Adam. The error that counts is X's on
validation data, where w is 1 for all: the dimensions that X hardly showed in training are there at full strength.

A and B are drawn independently and z anew for every sample, so the distribution of y says nothing about A: what Y does
for X here goes through the optimiser, not through information. That is why the controls decide. The exchange rate has
it the other way, as the theorems do: projections known, parameters fixed.

Shape legend: B batch, N samples, M observed numbers, H hidden width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from uml_core.theory.information import Modality, exchange_rate, pseudo_inverse

SHARED_DIM, SPECIFIC_DIM, OBSERVED_DIM = 10, 5, 50
NOISE_VARIANCE, ATTENUATION, SEEN_IN_FULL = 0.09, 0.05, 1
HIDDEN_WIDTH, BOTTLENECK = 128, 10
NUM_SAMPLES, NUM_VALIDATION, BATCH_SIZE, LEARNING_RATE = 10_000, 2_000, 512, 1e-3
NUM_STEPS, EARLY_STEP = 8_000, 1_000


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
class World:
    """The projections of one seed: shared (M, 10) and specific (M, 5) of X and of Y."""

    shared_x: Tensor
    specific_x: Tensor
    shared_y: Tensor
    specific_y: Tensor
    attenuation: Tensor
    noise_std: float = math.sqrt(NOISE_VARIANCE)

    def sample_x(self, count: int, generator: torch.Generator, *, attenuated: bool) -> Tensor:
        """Draw X (N, M), attenuated as in training or not, as in validation."""
        shared = _normal((count, SHARED_DIM), generator)
        shared = shared * self.attenuation if attenuated else shared
        return self._observe(shared, self.shared_x, self.specific_x, generator)

    def sample_y(self, count: int, generator: torch.Generator) -> Tensor:
        return self._observe(_normal((count, SHARED_DIM), generator), self.shared_y, self.specific_y, generator)

    def _observe(self, shared_NC: Tensor, shared: Tensor, specific: Tensor, generator: torch.Generator) -> Tensor:
        count = len(shared_NC)
        noise = self.noise_std * _normal((count, OBSERVED_DIM), generator)
        return shared_NC @ shared.T + _normal((count, SPECIFIC_DIM), generator) @ specific.T + noise


@dataclass(frozen=True)
class Curve:
    """One arm's validation error on X (mean squared error per observed number) at a few steps, for one seed."""

    arm: str
    seed: int
    steps: tuple[int, ...]
    validation_error: tuple[float, ...]
    steps_per_s: float

    def at(self, step: int) -> float:
        return self.validation_error[self.steps.index(step)]


@dataclass(frozen=True)
class LinearFloors:
    """Validation error of the best linear autoencoder of the same bottleneck, in closed form, for one seed.

    Attributes:
        attenuated: fitted to X as training shows it; where X alone can get to.
        full_strength: fitted to X as validation shows it; no linear autoencoder does better.
    """

    seed: int
    attenuated: float
    full_strength: float


class SharedAutoencoder(nn.Module):
    """Linear layers of its own for each modality around a shared encoder and decoder."""

    def __init__(self, modalities: tuple[str, ...], hidden_width: int = HIDDEN_WIDTH) -> None:
        super().__init__()
        # drawn first, so that every arm of a seed starts from the same shared weights
        self.encoder = nn.ModuleList([nn.Linear(hidden_width, hidden_width), nn.Linear(hidden_width, BOTTLENECK)])
        self.decoder = nn.ModuleList([nn.Linear(BOTTLENECK, hidden_width), nn.Linear(hidden_width, hidden_width)])
        self.inputs, self.outputs = nn.ModuleDict(), nn.ModuleDict()
        for modality in modalities:
            self.inputs[modality] = nn.Linear(OBSERVED_DIM, hidden_width)
            self.outputs[modality] = nn.Linear(hidden_width, OBSERVED_DIM)

    def forward(self, batches: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The reconstruction (B, M) of each modality's batch (B, M)."""
        hidden_BH = torch.cat([_through(self.inputs[name], self.encoder[0], x_BM) for name, x_BM in batches.items()])
        hidden_BH = functional.relu(self.decoder[0](self.encoder[1](functional.relu(hidden_BH))))
        parts = torch.split(hidden_BH, [len(x_BM) for x_BM in batches.values()])
        return {
            name: _through(self.decoder[1], self.outputs[name], part) for name, part in zip(batches, parts, strict=True)
        }


def draw_world(seed: int) -> World:
    generator = torch.Generator().manual_seed(seed)
    widths = (SHARED_DIM, SPECIFIC_DIM, SHARED_DIM, SPECIFIC_DIM)
    shared_x, specific_x, shared_y, specific_y = (_normal((OBSERVED_DIM, width), generator) for width in widths)
    attenuation = torch.full((SHARED_DIM,), ATTENUATION)
    attenuation[:SEEN_IN_FULL] = 1.0
    return World(shared_x, specific_x, shared_y, specific_y, attenuation)


def train_arm(arm: Arm, seed: int, num_steps: int = NUM_STEPS) -> Curve:
    """Train one arm and measure X's validation error along the way.

    Arms of one seed share projections, data, initial shared weights and, for the same N, X's batches.
    """
    world, generator = draw_world(seed), torch.Generator().manual_seed(10_000 + seed)
    x_NM = world.sample_x(NUM_SAMPLES, generator, attenuated=True)[: int(arm.share_x * NUM_SAMPLES)]
    validation = world.sample_x(NUM_VALIDATION, generator, attenuated=False)
    tables = {"x": x_NM}
    if arm.second:
        tables["y"] = second_corpus(arm.second, world.sample_y(NUM_SAMPLES - len(x_NM), generator), generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SharedAutoencoder(tuple(tables))
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    orders = {name: torch.Generator().manual_seed(20_000 + 10_000 * index + seed) for index, name in enumerate(tables)}
    measured, errors, trained_s = measured_steps(num_steps), [], 0.0
    for first, last in zip((0, *measured), measured, strict=False):
        started = time.perf_counter()
        for _ in range(first, last):
            batches = {
                name: table[torch.randint(len(table), (arm.batch_size,), generator=orders[name])]
                for name, table in tables.items()
            }
            _step(model, optimizer, batches)
        trained_s += time.perf_counter() - started
        errors.append(_error(model, validation))
    return Curve(arm.name, seed, measured, tuple(errors), num_steps / max(trained_s, 1e-9))


def linear_floors(seed: int) -> LinearFloors:
    """The closed-form validation errors of linear autoencoders: projections on leading eigenvectors."""
    world = draw_world(seed)
    shared, specific = world.shared_x.double().numpy(), world.specific_x.double().numpy()
    rest = specific @ specific.T + NOISE_VARIANCE * np.eye(OBSERVED_DIM)
    weak = shared * world.attenuation.double().numpy()
    training, validation = weak @ weak.T + rest, shared @ shared.T + rest

    def error(covariance: np.ndarray) -> float:
        kept = np.linalg.eigh(covariance)[1][:, -BOTTLENECK:]
        return float(np.trace(validation) - np.trace(kept.T @ validation @ kept)) / OBSERVED_DIM

    return LinearFloors(seed, error(training), error(validation))


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


def exchange_of(seed: int) -> ExchangeResult:
    """The exchange rates of the world of a seed: what one sample of each modality tells."""
    world = draw_world(seed)
    of_x, of_y = (modality.shared_information for modality in modalities_of(world))
    axes = np.eye(len(of_x))
    half = NUM_SAMPLES / 2
    return ExchangeResult(
        seed,
        exchange_rate(of_x, of_y),
        tuple(exchange_rate(of_x, of_y, axis) for axis in axes),
        float(np.trace(pseudo_inverse(NUM_SAMPLES * of_x))),
        float(np.trace(pseudo_inverse(half * of_x + half * of_y))),
    )


def modalities_of(world: World) -> tuple[Modality, Modality]:
    """One sample of X, attenuated as in training, and one of Y."""
    shared_x = world.shared_x.double().numpy() * world.attenuation.double().numpy()
    std = world.noise_std
    return (
        Modality.from_designs(shared_x, world.specific_x.double().numpy(), noise_std=std),
        Modality.from_designs(world.shared_y.double().numpy(), world.specific_y.double().numpy(), noise_std=std),
    )


def measured_steps(num_steps: int) -> tuple[int, ...]:
    """The steps at which the error is measured: about evenly on a logarithmic axis, up to the last."""
    marks = {100, 200, 300, 500, 700, EARLY_STEP, 1_400, 2_000, 2_800, 4_000, 5_000, 6_000, 7_000, NUM_STEPS}
    marks |= set(range(NUM_STEPS, num_steps, NUM_STEPS // 4))
    return (*sorted(mark for mark in marks if mark < num_steps), num_steps)


def _through(first: nn.Module, second: nn.Module, x: Tensor) -> Tensor:
    """Second(first(x)) of two linear layers, weights multiplied first: the same function, fewer products."""
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    return functional.linear(x, second.weight @ first.weight, functional.linear(first.bias, second.weight, second.bias))


def _step(model: SharedAutoencoder, optimizer: torch.optim.Optimizer, batches: Mapping[str, Tensor]) -> None:
    reconstructions = model(batches)
    loss = torch.stack([functional.mse_loss(reconstructions[name], x_BM) for name, x_BM in batches.items()]).sum()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


@torch.no_grad()
def _error(model: SharedAutoencoder, validation_NM: Tensor) -> float:
    return float(functional.mse_loss(model({"x": validation_NM})["x"], validation_NM))


def second_corpus(kind: str, y_NM: Tensor, generator: torch.Generator) -> Tensor:
    """Y itself, Y with every coordinate shuffled on its own, or noise of Y's mean and variance."""
    if kind == "real":
        return y_NM
    if kind == "permuted":
        columns = [column[torch.randperm(len(column), generator=generator)] for column in y_NM.T]
        return torch.stack(columns, dim=1)
    return y_NM.mean() + y_NM.std() * _normal(tuple(y_NM.shape), generator)


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator)
