"""One L-BFGS iteration: a solver asks for the loss and its gradient as often as its line search likes.

In: the gradient of all rows at once. Out: the losses before the iteration. The problem is that of a head without
projections, which is convex (`optim.name: lbfgs`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from uml_core.gradients import Gradient, StepBatch, checked
from uml_core.optimisation import optimised


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
