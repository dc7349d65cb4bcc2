"""Bayesian search (Optuna's TPE) over the grid of one arm, condition and seed; it learns from results.

In: axes of values, and results as they come. Out: the next point to try, never one that was tried before. Nothing is
stored: a resumed search gets the results of the sweep's folder again, in their order.
"""

from __future__ import annotations

import itertools
import random
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

MAX_REPEATS = 20  # proposals of points already tried before one that was not is drawn at random
NUM_RANDOM = 5  # points drawn at random first, to have something to learn from
Point = dict[str, Any]


class TpeSearch:
    """Proposes points of a grid; each is a position on every axis, so values may be anything."""

    def __init__(self, axes: Mapping[str, Sequence[Any]], *, stream: str, num_objectives: int = 1) -> None:
        """Start a search.

        Args:
            axes: values by key. Axes of numbers are searched in their order, others as unordered choices.
            stream: names the random draws; arms that share it start from the same draws where their axes agree.
            num_objectives: 1 maximises accuracy; 2 also minimises cost.
        """
        self._axes = {key: sorted(values) if _ordered(values) else list(values) for key, values in axes.items()}
        self._distributions: dict[str, BaseDistribution] = {
            key: IntDistribution(0, len(values) - 1)
            if _ordered(values)
            else CategoricalDistribution(range(len(values)))
            for key, values in self._axes.items()
        }
        seed = zlib.crc32(stream.encode())
        self._rng = random.Random(seed)
        self._tried: dict[tuple[int, ...], optuna.trial.Trial | None] = {}
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(
            seed=seed,
            n_startup_trials=NUM_RANDOM,
            constant_liar=True,  # trials run side by side: else those that are out would be proposed again
            multivariate=True,  # learning rate and weight decay depend on one another
        )
        accuracy_and_cost = (optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE)
        self._study = optuna.create_study(directions=accuracy_and_cost[:num_objectives], sampler=sampler)

    @property
    def num_tried(self) -> int:
        """Points proposed or known so far."""
        return len(self._tried)

    def propose(self) -> Point | None:
        """A point that was not tried yet; None where the whole grid was."""
        for _ in range(MAX_REPEATS):
            trial = self._study.ask(self._distributions)
            position = tuple(trial.params[key] for key in self._axes)
            if position not in self._tried:
                self._tried[position] = trial
                return self._point(position)
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        ranges = (range(len(values)) for values in self._axes.values())
        left = [position for position in itertools.product(*ranges) if position not in self._tried]
        if not left:
            return None
        position = self._rng.choice(left)
        self._tried[position] = None
        return self._point(position)

    def tell(self, point: Mapping[str, Any], values: Sequence[float] | None) -> None:
        """Learn what a point gave: one value for each objective; None for a trial that failed."""
        position = tuple(self._axes[key].index(point[key]) for key in self._axes)
        trial = self._tried.get(position)
        self._tried[position] = None
        if trial is not None:
            state = optuna.trial.TrialState.FAIL if values is None else None
            self._study.tell(trial, None if values is None else list(values), state=state)
        elif values is not None:
            params = dict(zip(self._axes, position, strict=True))
            known = optuna.trial.create_trial(params=params, distributions=self._distributions, values=list(values))
            self._study.add_trial(known)

    def _point(self, position: tuple[int, ...]) -> Point:
        return {key: values[index] for (key, values), index in zip(self._axes.items(), position, strict=True)}


def _ordered(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
