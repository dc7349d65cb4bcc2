"""One optimisation step, and the loop around it: the part every way of running (Train, Tune, a bare script) shares.

In: an experiment and its `TrainingData`. Out: evaluations as they happen, and the best model by validation.
Knows nothing of Ray: a caller gives rank and world size, and may save and restore `state_dict()` between evaluations.

Shape legend: B batch, C classes, D embedding width.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from uml_core.config import Experiment
from uml_core.data.sequence_data import SequenceData
from uml_core.data.training_data import TrainingData
from uml_core.feed.mixing import MixingPlan
from uml_core.gradients.autograd import gradient_cosines
from uml_core.gradients.batch import Batch, Gradient, NonFiniteError, StepBatch, checked
from uml_core.gradients.ranks import (
    RankContext,
    all_finite,
    clip_gradients,
    gathered,
    sharded_moments,
    sharded_weights,
    whole_copy,
)
from uml_core.training.objective import Objective
from uml_core.training.optimizer import (
    WeightAverage,
    build_optimizer,
    learning_rate,
    optimised,
    set_learning_rate,
    solver_step,
)
from uml_core.training.supervised import SupervisedObjective

Update = tuple[int, tuple[str, ...]]  # its step and corpora


@dataclass(frozen=True)
class Evaluation:
    """What is known after an evaluation at `step` (optimiser steps done so far)."""

    step: int
    val_accuracy: float
    val_nll: float  # mean negative log-likelihood, nats
    losses: dict[str, float]  # mean training loss of each corpus since the last evaluation
    samples_per_s: float
    data_wait_s: float  # seconds spent assembling batches so far
    gradient_cosine: dict[str, float] = field(default_factory=dict)  # target against corpus; train.gradient_cosine


@dataclass(frozen=True)
class BestModel:
    """The model that validated best: higher accuracy, and at equal accuracy lower NLL."""

    step: int
    val_accuracy: float
    val_nll: float
    weights: dict[str, Tensor]  # whole; of a sharded run on rank 0 alone


@dataclass(frozen=True)
class TrainedSteps:
    """The steps between two evaluations, once they are done."""

    until: int  # optimiser steps done so far
    last_update: Update | None
    losses: dict[str, float]  # mean of each corpus
    samples: Counter[str]
    train_s: float
    data_wait_s: float


@dataclass
class Progress:
    """The loop's own state, saved and restored with the model."""

    step: int = 0
    bad_evaluations: int = 0
    samples: Counter[str] = field(default_factory=Counter)
    train_s: float = 0.0
    data_wait_s: float = 0.0
    finished: bool = False


def build_objective(experiment: Experiment, data: TrainingData | SequenceData, ranks: RankContext) -> Objective:
    """The objective that an experiment's data is for, with its model built and its data on the device."""
    if isinstance(data, SequenceData):
        from uml_core.training.self_supervised import SelfSupervisedObjective  # scikit-learn takes a second

        return SelfSupervisedObjective(experiment, data, ranks)
    if experiment.model.backbone != "frozen":
        from uml_core.training.fine_tuning import FineTuningObjective  # encoders take seconds

        return FineTuningObjective(experiment, data, ranks)
    return SupervisedObjective(experiment, data, ranks)


def train_step(
    gradient: Gradient, optimizer: torch.optim.Optimizer, batch: StepBatch, *, clip_norm: float | None = None
) -> dict[str, float]:
    """Make one optimiser update on the weighted sum of the corpora's losses; returns each corpus's mean loss.

    `batch` is this rank's share. The gradient is scaled down to `clip_norm` over all parameters where it is larger.

    Raises:
        NonFiniteError: a loss or the gradient is NaN or infinite, on any rank; the update is not made on any.
    """
    losses = checked(gradient(batch))
    if clip_norm is not None:
        clip_gradients(optimised(optimizer), clip_norm)
    optimizer.step()
    return losses


class TrainingRun:
    """One training run on one rank. Iterate `evaluations()`; save `state_dict()` whenever it yields."""

    def __init__(
        self,
        experiment: Experiment,
        data: TrainingData | SequenceData,
        *,
        device: str = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.experiment, self.data = experiment, data
        self.ranks = RankContext(torch.device(device), rank, world_size)
        self._plan = MixingPlan.from_experiment(experiment)
        self.objective = build_objective(experiment, data, self.ranks)
        self.model: Any = self.objective.model
        decay = experiment.optim.ema_decay if experiment.num_steps else 0.0
        self._average = WeightAverage(self.model, decay) if decay else None
        self.progress = Progress()
        self._last_update: Update | None = None
        self.best: BestModel | None = None

    @cached_property
    def _optimizer(self) -> torch.optim.Optimizer:
        """Built when training begins: torch's L-BFGS takes over a second to import, and measuring a run needs none."""
        scales = self.objective.learning_rate_scales()
        return build_optimizer(self.model, self.experiment.optim, scales=scales)

    def observed_ratio(self, corpus: str) -> float:
        return self.progress.samples[corpus] / max(1, self.progress.samples[self.data.target])

    def scheduled_weights(self) -> dict[str, float]:
        """The loss weights that follow a schedule, as they are at the next step."""
        weights = self._plan.loss_weights(self.progress.step)
        return {corpus: weights[corpus] for corpus in self._plan.scheduled}

    def evaluations(self) -> Iterator[Evaluation]:
        """Train, yielding after every evaluation, until max_steps or patience ends the run; a solved head at once."""
        if self.experiment.num_steps == 0 and not self.progress.finished:
            if self.experiment.model.head != "paper":
                self._solve()
            self.progress.finished = True
            yield self._measured(losses={})
        if self.progress.finished:
            return
        gradient = self.objective.gradient()
        while not self.progress.finished:
            yield self.evaluate(self._train(self.next_stop, gradient))

    def _solve(self) -> None:
        from uml_core.models.closed_form.solved_head import solve_head  # scikit-learn takes a second

        assert isinstance(self.data, TrainingData), "other data are refused with the experiment"
        started = time.perf_counter()
        weight_CD, bias_C = solve_head(self.experiment, self.data)
        self.model.head.load_state_dict({"weight": weight_CD, "bias": bias_C})
        self.progress.train_s += time.perf_counter() - started

    @property
    def next_stop(self) -> int:
        return min(self.progress.step + self.experiment.train.eval_every, self.experiment.num_steps)

    def evaluate(self, trained: TrainedSteps) -> Evaluation:
        """Evaluate the model after some more steps, and decide whether the run goes on.

        Raises:
            NonFiniteError: the last update has made weights infinite.
        """
        progress = self.progress
        progress.step = trained.until
        progress.samples.update(trained.samples)
        progress.train_s += trained.train_s
        progress.data_wait_s += trained.data_wait_s
        self._last_update = trained.last_update or self._last_update
        evaluation = self._measured(trained.losses)
        out_of_patience = progress.bad_evaluations >= self.experiment.train.patience
        progress.finished = out_of_patience or progress.step >= self.experiment.num_steps
        return evaluation

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, with any number of ranks; batches need nothing but the step.

        Every rank calls it, and of a sharded run rank 0 alone gets the weights.
        """
        state = {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
        }
        return {**gathered(state), **self.result_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._load_weights(state["model"])
        self._optimizer.load_state_dict(sharded_moments(state["optimizer"], self._optimizer))
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        self.load_result(state)

    def result_state(self) -> dict[str, Any]:
        """What is left of a finished run: its best weights and progress, without the optimiser."""
        progress = {**vars(self.progress), "samples": dict(self.progress.samples)}
        return {"progress": progress, "best": None if self.best is None else vars(self.best)}

    def load_result(self, state: dict[str, Any]) -> None:
        """Take over `result_state()`, to measure a finished run."""
        self.progress = Progress(**{**state["progress"], "samples": Counter(state["progress"]["samples"])})
        self.best = None if state["best"] is None else BestModel(**state["best"])

    def load_best(self) -> Any:
        assert self.best is not None, "no evaluation yet"
        self._load_weights(self.best.weights)
        return self.model

    def _load_weights(self, weights: dict[str, Tensor]) -> None:
        self.model.load_state_dict(sharded_weights(weights, self.model.state_dict()))

    def _train(self, until: int, gradient: Gradient) -> TrainedSteps:
        wait_s = 0.0
        sums: dict[str, float] = defaultdict(float)
        counts: Counter[str] = Counter()
        samples: Counter[str] = Counter()
        optimizer = self._optimizer  # built before the clock starts
        started = time.perf_counter()
        self.model.train()
        for step in range(self.progress.step, until):
            # From the step alone, as the batch and the weights are: a resumed run needs no scheduler's state.
            set_learning_rate(optimizer, learning_rate(step, self.experiment))
            if self._plan.scheduled:
                gradient.reweight(self._plan.loss_weights(step))
            for group in self._plan.groups(step):
                waiting = time.perf_counter()
                batch = self.objective.batch(step, group)
                wait_s += time.perf_counter() - waiting
                if batch is None:
                    continue
                losses = self._update(gradient, batch, step)
                self._last_update = step, tuple(losses)
                for corpus, loss in losses.items():
                    sums[corpus] += loss
                    counts[corpus] += 1
                    samples[corpus] += batch.global_counts[corpus]
            if self._average is not None:
                self._average.update()
        means = {corpus: total / counts[corpus] for corpus, total in sums.items()}
        return TrainedSteps(until, self._last_update, means, samples, time.perf_counter() - started, wait_s)

    def _update(self, gradient: Gradient, batch: StepBatch, step: int) -> dict[str, float]:
        optim = self.experiment.optim
        try:
            if isinstance(self._optimizer, torch.optim.LBFGS):
                weights = self._plan.loss_weights(step)
                return solver_step(gradient, self._optimizer, batch, weights=weights, penalty=optim.weight_decay)
            return train_step(gradient, self._optimizer, batch, clip_norm=optim.clip_norm)
        except NonFiniteError as error:
            raise self.divergence(error, step, self._last_update) from None

    def divergence(self, error: NonFiniteError, step: int, last_update: Update | None) -> NonFiniteError:
        """The error that names the update to blame: the last one, where it has made weights infinite."""
        if last_update is not None and not all_finite(self.model.parameters()):
            return self._named(*last_update)
        return self._named(step, error.corpora, error.bad)

    def _named(self, step: int, corpora: tuple[str, ...], bad: tuple[str, ...] = ()) -> NonFiniteError:
        rows = {name: self.objective.batch_rows(step, name) for name in bad or corpora}
        return NonFiniteError(bad, corpora, step, rows)

    def _measured(self, losses: dict[str, float]) -> Evaluation:
        progress = self.progress
        # Infinite weights are never measured or saved.
        if self._last_update is not None and not all_finite(self.model.parameters()):
            raise self._named(*self._last_update)
        with contextlib.nullcontext() if self._average is None else self._average.in_place():
            accuracy, nll = self.ranks.from_rank_zero(*self.objective.validate())
            better = self.best is None or (accuracy, -nll) > (self.best.val_accuracy, -self.best.val_nll)
            if better:
                self.best = BestModel(progress.step, accuracy, nll, whole_copy(self.model.state_dict()))
        # A warm start need not show on the target: patience begins with the joint steps. The best model is the one that
        # validates best, whenever that was.
        waits = not better and progress.step > self._plan.warm_start_steps
        progress.bad_evaluations = progress.bad_evaluations + 1 if waits else 0
        samples_per_s = sum(progress.samples.values()) / progress.train_s if progress.train_s > 0 else 0.0
        cosines = self._gradient_cosines() if self.experiment.train.gradient_cosine else {}
        return Evaluation(progress.step, accuracy, nll, losses, samples_per_s, progress.data_wait_s, cosines)

    def _gradient_cosines(self) -> dict[str, float]:
        """Compare the corpora's gradients on the batch that comes next, which these weights have not seen."""
        batch = self.objective.batch(self.progress.step, self._plan.corpora)
        if batch is None:  # a warm start on a corpus that takes no part
            return {}
        assert isinstance(batch, Batch), "other objectives and batches in parts are refused with the experiment"
        return gradient_cosines(self.model, batch, self.data.target, world_size=self.ranks.world_size)
