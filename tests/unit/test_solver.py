"""L-BFGS on the shared head: the optimum that scipy finds, no worse than AdamW's, resumed to the bit."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from tests.conftest import finish, table
from tests.unit.test_training import CODES, LABELS, LATENT, RNG, experiment
from uml_core.data.training_data import build_training_data
from uml_core.errors import InputError
from uml_core.training.run import TrainingRun

TABLES = {
    "target": table(
        LATENT[CODES] @ RNG.normal(size=(3, 5)) + RNG.normal(size=(48, 5)),
        LABELS,
        (["train"] * 6 + ["val"] * 2 + ["test"] * 4) * 4,
    ),
    "names": table(LATENT[CODES] @ RNG.normal(size=(3, 5)) + RNG.normal(size=(48, 5)), LABELS),
}
SOLVE = {"optim.name": "lbfgs", "model.learnable_scale": False, "train.max_steps": 60, "optim.weight_decay": 0.02}


def run_of(**changes: Any) -> TrainingRun:
    settings = experiment(**{**SOLVE, "train.patience": 100, **changes})
    return TrainingRun(settings, build_training_data(settings, TABLES))


def objective_of(run: TrainingRun, weight: torch.Tensor, penalty: float) -> torch.Tensor:
    """CE of the target + 0.3 · CE of names over all rows + penalty / 2 · ‖W‖², written down again."""
    total = penalty / 2 * weight.square().sum()
    for corpus, factor in (("target", 1.0), ("names", 0.3)):
        rows = run.data.train[corpus]
        logits = torch.from_numpy(rows.gathered()).to(weight) @ weight.T
        total = total + factor * nn.functional.cross_entropy(logits, torch.from_numpy(rows.labels))
    return total


def test_it_reaches_the_optimum_that_scipy_finds() -> None:
    run = finish(run_of(**{"mixing.loss_weight.names": 0.3}))

    def value_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight = torch.from_numpy(flat.reshape(4, 5)).requires_grad_()
        value = objective_of(run, weight, 0.02)
        value.backward()
        return value.item(), weight.grad.numpy().ravel()

    optimum = minimize(value_and_gradient, np.zeros(20), jac=True, method="BFGS", options={"gtol": 1e-9})
    ours = objective_of(run, run.model.head.weight.detach().double(), 0.02).item()
    assert ours == pytest.approx(optimum.fun, abs=1e-6)
    assert np.allclose(run.model.head.weight.detach().numpy().ravel(), optimum.x, atol=2e-3)


def test_it_is_no_worse_than_adamw() -> None:
    changes = {"mixing.loss_weight.names": 0.3, "optim.weight_decay": 0.0}
    solved = finish(run_of(**changes, **{"train.max_steps": 40}))
    adamw = finish(run_of(**changes, **{"optim.name": "adamw", "train.max_steps": 1500, "optim.lr": 0.03}))
    values = [objective_of(run, run.model.head.weight.detach(), 0.0).item() for run in (solved, adamw)]
    assert values[0] <= values[1]


def test_a_resumed_solver_is_the_uninterrupted_one() -> None:
    whole = finish(run_of())
    first = run_of()
    next(first.evaluations())
    second = run_of()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    finish(second)
    assert torch.equal(whole.model.head.weight, second.model.head.weight)
    assert second.progress.samples == {"target": 60 * 24, "names": 60 * 48}


def test_corpora_of_other_widths_and_settings_that_are_not_convex_are_refused() -> None:
    from tests.unit.test_training import TABLES as UNLIKE

    settings = experiment(**SOLVE)
    with pytest.raises(InputError, match=r"corpus target, 10 wide, is projected to the shared width 5; .*adamw"):
        TrainingRun(settings, build_training_data(settings, UNLIKE))
    for changes in (
        {"model.learnable_scale": True},
        {"mixing.schedule": "alternate"},
        {"optim.ema_decay": 0.9},
        {"mixing.batch_ratio": {"names": 0.25}},
    ):
        with pytest.raises(InputError, match=r"optim.name=lbfgs needs .*; or set optim.name=adamw"):
            experiment(**{**SOLVE, **changes})
