"""The optimiser, its learning rate over steps, and the average of the weights."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from uml_core.config import Experiment, OptimConfig
from uml_core.gradients.batch import Gradient, StepBatch, checked
from uml_core.gradients.ranks import local, sharded_like

SCALE = "lr_scale"  # of a parameter group: factor on the learning rate
ADAMW_STEP = inspect.unwrap(torch.optim.AdamW.step)
LBFGS_HISTORY, LBFGS_TOLERANCE, LBFGS_EVALUATIONS = 20, 1e-7, 26


def build_optimizer(
    model: nn.Module, settings: OptimConfig, *, scales: Mapping[str, float] = MappingProxyType({})
) -> torch.optim.Optimizer:
    """AdamW, whose weight decay applies to matrices, not to the scales; or L-BFGS, one iteration a step.

    `scales` are factors on the rate, by a parameter's name; 1 where it is not named.
    """
    if settings.name == "lbfgs":
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return torch.optim.LBFGS(
            [{"params": trained, SCALE: 1.0}],
            max_iter=1,
            max_eval=LBFGS_EVALUATIONS,  # torch's own default would leave the line search none
            history_size=LBFGS_HISTORY,
            tolerance_grad=LBFGS_TOLERANCE,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )
    # Parameters with a rate of their own are apart also where it is 1: a group is all sharded, or all whole.
    # The order of groups is part of every checkpoint: decayed ones first.
    groups: dict[tuple[float, float, bool], list[Tensor]] = {}
    for decay in (settings.weight_decay, 0.0):
        groups[1.0, decay, False] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = settings.weight_decay if parameter.ndim >= 2 else 0.0
            groups.setdefault((scales.get(name, 1.0), decay, name in scales), []).append(parameter)
    present = [(key, parameters) for key, parameters in groups.items() if parameters]
    return LeanAdamW(
        [{"params": parameters, "weight_decay": decay, SCALE: scale} for (scale, decay, _), parameters in present],
        lr=settings.lr,
    )


class LeanAdamW(torch.optim.AdamW):
    """torch's fused AdamW, number for number, without what torch wraps around it.

    Hooks, profiler and a way back through the update take an eighth of the step of a head of 384 x 100 (310 against 276
    us). Worse, torch's wrappers import its compiler: over a second at the start of every process.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)

    def __init__(self, groups: Sequence[dict[str, Any]], lr: float = 1e-3) -> None:
        super().__init__(groups, lr=lr, fused=True)

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        with torch.no_grad():
            ADAMW_STEP(self)

    step.hooked = True  # type: ignore[attr-defined]  # else torch wraps it for its profiler


def learning_rate(step: int, experiment: Experiment) -> float:
    """A step's rate: linear from warmup_lr over warmup_steps, then cosine to 0 at max_steps (or constant).

    A warm-up never goes down: it starts at lr where that is less than warmup_lr. Of lbfgs it is where a line search
    starts: 1, a whole quasi-Newton step.
    """
    optim, max_steps = experiment.optim, experiment.train.max_steps
    if optim.name == "lbfgs":
        return 1.0
    if step < optim.warmup_steps:
        start = min(optim.warmup_lr, optim.lr)
        return start + (optim.lr - start) * step / optim.warmup_steps
    if optim.schedule == "constant":
        return optim.lr
    done = (step - optim.warmup_steps) / max(1, max_steps - optim.warmup_steps)
    return optim.lr * 0.5 * (1 + math.cos(math.pi * done))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group[SCALE]


def optimised(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


class WeightAverage:
    """The exponential average of a model's weights: after every step, average ← d · average + (1 − d) · weights.

    At step s, d is at most (1 + s) / (10 + s), so that the random start is soon forgotten. Counters among the buffers
    are copied as they are. Of a sharded model every rank averages its shards.

    Not torch's AveragedModel: that copies the module, which FSDP refuses, and knows no warm-up of the decay.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay, self._step = decay, 0
        weights = model.state_dict()  # the model's own tensors, updated in place
        self._average = {name: value.clone() for name, value in weights.items()}
        self._pairs = [(local(self._average[name]), local(value)) for name, value in weights.items()]

    @torch.no_grad()
    def update(self) -> None:
        decay = min(self._decay, (1 + self._step) / (10 + self._step))
        self._step += 1
        for average, weight in self._pairs:
            if weight.is_floating_point():
                average.lerp_(weight, 1 - decay)
            else:
                average.copy_(weight)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the average into the model, and the weights back afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step, "average": dict(self._average)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._step = state["step"]
        for name, value in self._average.items():
            value.copy_(sharded_like(state["average"][name], value))

    @torch.no_grad()
    def _swap(self) -> None:
        for average, weight in self._pairs:
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)


def solver_step(
    gradient: Gradient, solver: torch.optim.LBFGS, batch: StepBatch, *, weights: Mapping[str, float], penalty: float
) -> dict[str, float]:
    """Make one L-BFGS iteration on Σ weight · loss + penalty / 2 · ‖W‖²; returns each corpus's mean loss before it.

    Raises:
        NonFiniteError: a loss or the gradient is NaN or infinite, on any rank.
    """
    first: dict[str, float] = {}

    def evaluated() -> float:
        losses = checked(gradient(batch))
        first.update(losses if not first else {})
        norm_squared = 0.0
        for parameter in optimised(solver):
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach(), alpha=penalty)
                norm_squared += parameter.detach().square().sum().item()
        return sum(weights[corpus] * loss for corpus, loss in losses.items()) + penalty / 2 * norm_squared

    solver.step(evaluated)  # type: ignore[no-untyped-call]
    return first
