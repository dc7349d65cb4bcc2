"""Several training runs of a frozen backbone at once, in one process: every step is made for all of them together.

In: runs whose models and batches have the same shapes, whatever their data, seeds, rates and loss weights. Out: their
evaluations, as if each had trained alone, up to rounding. A run that ends by patience, or diverges, leaves the pack.

Shape legend: K runs, M corpora.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from uml_core.config import Experiment, hash_of
from uml_core.config.used_by import deciding
from uml_core.errors import InputError
from uml_core.feed.mixing import MixingPlan
from uml_core.gradients.batch import Batch, NonFiniteError
from uml_core.gradients.stacked_heads import StackedHeads
from uml_core.training.optimizer import LeanAdamW, learning_rate
from uml_core.training.run import Evaluation, TrainedSteps, TrainingRun, Update

WITHOUT_STEPS = "without steps"  # the label of heads that are solved, or not trained: one process takes them in turn


def pack_label(experiment: Experiment, *, device: str = "cpu") -> str | None:
    """A label that is equal for experiments that may train in one pack; None for one that trains alone.

    Alone train what the closed form does not cover: other objectives, a trained backbone, L-BFGS, clipping, averaged
    weights, batches in parts, bfloat16.
    """
    optim, train = experiment.optim, experiment.train
    float32 = train.precision == "float32" or (train.precision == "auto" and device == "cpu")
    closed_form = experiment.objective == "supervised" and experiment.model.backbone == "frozen" and float32
    plain_update = optim.name == "adamw" and optim.clip_norm is None and not optim.ema_decay and train.accumulate == 1
    if experiment.takes_no_step:
        return WITHOUT_STEPS
    if not (closed_form and plain_update and not train.gradient_cosine):
        return None
    plan = MixingPlan.from_experiment(experiment)
    own = plan.scheduled if plan.alternate or plan.warm_start_steps else ()  # a corpus of weight 0 then has no update
    weights = {name: str(plan.loss_weight[name]) if name in own else None for name in plan.corpora}
    return hash_of([deciding(experiment, "pack"), weights])


def shapes_of(run: TrainingRun) -> tuple[object, ...]:
    """What must be equal in a pack and only the data tell: the shapes of a run's weights."""
    return tuple((name, tuple(value.shape)) for name, value in run.model.state_dict().items())


def train_together(
    runs: Sequence[TrainingRun], on_evaluation: Callable[[TrainingRun, Evaluation], None]
) -> list[InputError | None]:
    """Train runs of one `pack_label` and equal `shapes_of` to their ends; returns what ended each, None where well.

    Args:
        runs: K of them; those that share `data` and seed share their batches.
        on_evaluation: is called for each of them in turn after every evaluation.
    """
    running = sorted(runs, key=lambda run: run.experiment.optim.model_dump_json())  # equal settings side by side
    failures: dict[int, InputError] = {}  # by the run's id()
    pack = _Pack(running)
    while running:
        for run, trained in zip(running, pack.train(), strict=True):
            try:
                if isinstance(trained, NonFiniteError):
                    raise trained
                on_evaluation(run, run.evaluate(trained))
            except InputError as error:
                failures[id(run)] = error
        kept = [run for run in running if id(run) not in failures and not run.progress.finished]
        if kept and len(kept) < len(running):
            pack = pack.keep(kept)
        running = kept
    return [failures.get(id(run)) for run in runs]


class _Pack:
    """K running runs, their weights and moments stacked."""

    def __init__(self, runs: Sequence[TrainingRun]) -> None:
        self._runs = list(runs)
        self._plans = [MixingPlan.from_experiment(run.experiment) for run in runs]
        self._plan = self._plans[0]  # the same for all but for its weights
        self._is_scheduled = any(plan.scheduled for plan in self._plans)
        smoothing = runs[0].experiment.train.label_smoothing
        self._heads = StackedHeads([run.model for run in runs], self._plan.corpora, label_smoothing=smoothing)
        self._optimizer = StackedAdamW(self._heads, [run.experiment for run in runs])
        keys = [(id(run.data), run.experiment.seed) for run in runs]
        distinct = list(dict.fromkeys(keys))
        # Of batches: runs of equal data and seed share them.
        self._sources = [runs[keys.index(key)] for key in distinct]
        self._source_of = [distinct.index(key) for key in keys]
        self._weights_KM = self._loss_weights(runs[0].progress.step)
        self._last_update: Update | None = None

    def keep(self, runs: Sequence[TrainingRun]) -> _Pack:
        """The pack of some of the runs, which goes on where this one is."""
        smaller = _Pack(runs)
        smaller._optimizer.continue_from(self._optimizer, [self._runs.index(run) for run in runs])
        smaller._last_update = self._last_update
        return smaller

    def train(self) -> list[TrainedSteps | NonFiniteError]:
        """Train up to the next evaluation; returns each run's own account of it."""
        num_runs, stop = len(self._runs), self._runs[0].next_stop
        zeros_K = torch.zeros(num_runs, dtype=torch.float64, device=self._heads.device)
        sums = {corpus: zeros_K.clone() for corpus in self._plan.corpora}
        updates: Counter[str] = Counter()
        samples: Counter[str] = Counter()
        diverged: dict[int, NonFiniteError] = {}
        started, wait_s = time.perf_counter(), 0.0
        for step in range(self._runs[0].progress.step, stop):
            if self._is_scheduled:
                self._weights_KM = self._loss_weights(step)
            for group in self._plan.groups(step):
                waiting = time.perf_counter()
                batches = self._batches(step, group)
                wait_s += time.perf_counter() - waiting
                if batches is None:
                    continue
                counts = batches[0].global_counts
                columns = [self._plan.corpora.index(corpus) for corpus in counts]
                losses_KM = self._heads.backward(batches, self._weights_KM[:, columns])
                self._note_diverged(diverged, losses_KM, step, tuple(counts))
                self._optimizer.step(step, self._heads.reached(tuple(counts)))
                self._last_update = step, tuple(counts)
                samples.update(counts)
                updates.update(counts.keys())
                for corpus, losses_K in zip(counts, losses_KM.unbind(1), strict=True):
                    sums[corpus] += losses_K
        means = {corpus: (sums[corpus] / count).tolist() for corpus, count in updates.items()}
        share_s, share_wait_s = (time.perf_counter() - started) / num_runs, wait_s / num_runs
        return [
            diverged.get(index)
            or TrainedSteps(
                until=stop,
                last_update=self._last_update,
                losses={corpus: values[index] for corpus, values in means.items()},
                samples=samples,
                train_s=share_s,
                data_wait_s=share_wait_s,
            )
            for index in range(num_runs)
        ]

    def _batches(self, step: int, group: Sequence[str]) -> list[Batch] | None:
        found = [run.objective.batch(step, group) for run in self._sources]
        batches = [batch for batch in found if isinstance(batch, Batch)]
        if not batches:  # sizes are the same in all runs: either every run has a batch, or none
            return None
        return batches if len(batches) == 1 else [batches[source] for source in self._source_of]

    def _note_diverged(
        self, diverged: dict[int, NonFiniteError], losses_KM: Tensor, step: int, corpora: tuple[str, ...]
    ) -> None:
        """Remember the runs whose loss is no longer finite. They do no harm to the others until the evaluation."""
        losses = losses_KM.tolist()
        if math.isfinite(sum(map(sum, losses))):
            return
        for index, of_run in enumerate(losses):
            bad = tuple(corpus for corpus, loss in zip(corpora, of_run, strict=True) if not math.isfinite(loss))
            if bad and index not in diverged:
                error = NonFiniteError(bad, corpora)
                diverged[index] = self._runs[index].divergence(error, step, self._last_update)

    def _loss_weights(self, step: int) -> Tensor:
        weights = [plan.loss_weights(step) for plan in self._plans]
        rows = [[of_run[corpus] for corpus in self._plan.corpora] for of_run in weights]
        return torch.tensor(rows, device=self._heads.device)


class StackedAdamW:
    """One AdamW over the stacked weights of K models, each with its own rate and weight decay.

    Models of equal settings lie side by side, and their slice of a weight is one parameter: a step costs as many calls
    as there are settings. With a parameter for each model's weight, 24 heads of 10 dimensions took 2.5 times as long.
    """

    def __init__(self, heads: StackedHeads, experiments: Sequence[Experiment]) -> None:
        self._heads = heads
        self._slices: list[tuple[slice, dict[str, nn.Parameter]]] = []
        groups, start = [], 0
        for settings, equal in itertools.groupby(experiments, key=lambda experiment: experiment.optim):
            members = list(equal)
            rows = slice(start, start + len(members))
            parameters = {name: nn.Parameter(heads.values[name][rows]) for name in heads.gradients}
            self._slices.append((rows, parameters))
            start = rows.stop
            for decay, is_matrix in ((settings.weight_decay, True), (0.0, False)):  # as alone: no decay of scales
                chosen = [value for value in parameters.values() if (value.ndim > 1) == is_matrix]
                if chosen:
                    groups.append({"params": chosen, "weight_decay": decay, "experiment": members[0]})
        self._optimizer = LeanAdamW(groups)
        self._reached: set[str] | None = None

    def step(self, step: int, reached: set[str]) -> None:
        """Update the weights that a batch reached, at every model's rate of that step."""
        if reached != self._reached:
            for rows, parameters in self._slices:
                for name, parameter in parameters.items():
                    parameter.grad = self._heads.gradients[name][rows] if name in reached else None
            self._reached = reached
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(step, group["experiment"])
        self._optimizer.step()

    def continue_from(self, other: StackedAdamW, kept: Sequence[int]) -> None:
        """Continue from the moments of some of the other's models, given in this one's order."""
        for name in self._heads.gradients:
            states = [other._optimizer.state[parameters[name]] for _, parameters in other._slices]
            if not all(states):  # a weight that no batch has reached
                continue
            means, squares = (torch.cat([state[key] for state in states]) for key in ("exp_avg", "exp_avg_sq"))
            for rows, parameters in self._slices:
                own = kept[rows]
                self._optimizer.state[parameters[name]] = {
                    "step": states[0]["step"].clone(),
                    "exp_avg": means[own],
                    "exp_avg_sq": squares[own],
                }
