"""AdamW over the stacked weights of K models, each with its own rate and weight decay.

In: `StackedHeads` and each model's settings. Models of equal settings that lie side by side are one parameter group:
K models cost as many calls as there are settings.

Shape legend: K models.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from uml_core.config import Experiment
from uml_core.gradients.stacked_heads import StackedHeads
from uml_core.training.optimizer import FusedAdamW, learning_rate

State = Mapping[str, Mapping[str, Tensor]]  # of each weight: step (), exp_avg and exp_avg_sq (K, ...)


class StackedAdamW:
    """One fused AdamW; its parameters are slices of the stacked weights."""

    def __init__(self, heads: StackedHeads, experiments: Sequence[Experiment]) -> None:
        self._heads = heads
        self._settings: list[Experiment] = []
        self._slices: list[tuple[slice, dict[str, nn.Parameter]]] = []
        groups = []
        for _, equal in itertools.groupby(experiments, key=lambda experiment: experiment.optim):
            members = list(equal)
            start = self._slices[-1][0].stop if self._slices else 0
            rows = slice(start, start + len(members))
            parameters = {name: nn.Parameter(heads.values[name][rows]) for name in heads.gradients}
            self._slices.append((rows, parameters))
            decay = members[0].optim.weight_decay
            for is_matrix in (True, False):  # as everywhere, weight decay leaves the scales out
                chosen = [value for value in parameters.values() if (value.ndim > 1) == is_matrix]
                if chosen:
                    groups.append({"params": chosen, "weight_decay": decay if is_matrix else 0.0})
                    self._settings.append(members[0])
        self._optimizer = FusedAdamW(groups)
        self._reached: set[str] | None = None

    def step(self, step: int, reached: set[str]) -> None:
        """Update the weights that a batch reached, at every model's rate of that step."""
        if reached != self._reached:
            for rows, parameters in self._slices:
                for name, parameter in parameters.items():
                    parameter.grad = self._heads.gradients[name][rows] if name in reached else None
            self._reached = reached
        for group, experiment in zip(self._optimizer.param_groups, self._settings, strict=True):
            group["lr"] = learning_rate(step, experiment)
        self._optimizer.step()

    def state(self) -> State:
        """Return the moments of every weight that has been updated, model after model."""
        found: dict[str, dict[str, Tensor]] = {}
        for name in self._heads.gradients:
            states = [self._optimizer.state[parameters[name]] for _, parameters in self._slices]
            if all(states):
                moments = {key: torch.cat([state[key] for state in states]) for key in ("exp_avg", "exp_avg_sq")}
                found[name] = {"step": states[0]["step"], **moments}
        return found

    def take_over(self, state: State, kept: Sequence[int]) -> None:
        """Continue from the moments of some of the models, in this optimiser's order."""
        for name, moments in state.items():
            for rows, parameters in self._slices:
                of_slice = {key: moments[key][list(kept[rows])] for key in ("exp_avg", "exp_avg_sq")}
                self._optimizer.state[parameters[name]] = {"step": moments["step"].clone(), **of_slice}
