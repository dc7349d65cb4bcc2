"""The optimiser and its learning rate over steps."""

from __future__ import annotations

import math

import torch
from torch import nn

from uml_core.config import Experiment, OptimConfig


def build_optimizer(model: nn.Module, settings: OptimConfig) -> torch.optim.Optimizer:
    """Return AdamW; weight decay applies to matrices, not to the scales."""
    matrices = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.ndim >= 2]
    scalars = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": scalars, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=settings.lr, fused=True)


def learning_rate(step: int, experiment: Experiment) -> float:
    """Return a step's rate: linear from warmup_lr over warmup_steps, then cosine to 0 at max_steps (or constant)."""
    optim, max_steps = experiment.optim, experiment.train.max_steps
    if step < optim.warmup_steps:
        return optim.warmup_lr + (optim.lr - optim.warmup_lr) * step / optim.warmup_steps
    if optim.schedule == "constant":
        return optim.lr
    done = (step - optim.warmup_steps) / max(1, max_steps - optim.warmup_steps)
    return optim.lr * 0.5 * (1 + math.cos(math.pi * done))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set every parameter group's learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
