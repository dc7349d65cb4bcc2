"""Several training runs of a frozen backbone at once, in one process: every step is made for all of them together.

In: runs whose models and batches have the same shapes, whatever their data, seeds, rates and loss weights. Out: their
evaluations, as if each had trained alone, up to rounding. A run that ends by patience, or diverges, leaves the pack.

Shape legend: K runs, M corpora.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from uml_core.config import Experiment, hash_of
from uml_core.config.used_by import deciding
from uml_core.errors import InputError
from uml_core.feed.mixing import MixingPlan
from uml_core.gradients.autograd import NonFiniteError
from uml_core.gradients.batch import Batch
from uml_core.gradients.stacked_heads import StackedHeads
from uml_core.training.progress import Evaluation, TrainedSteps, Update
from uml_core.training.run import TrainingRun
from uml_core.training.stacked_adamw import StackedAdamW


def pack_label(experiment: Experiment, *, device: str = "cpu") -> str | None:
    """Return a label that is equal for experiments that may train in one pack; None for one that trains alone.

    Alone train what the closed form does not cover: other objectives, a trained backbone, L-BFGS, clipping, averaged
    weights, batches in parts, bfloat16.
    """
    optim, train = experiment.optim, experiment.train
    float32 = train.precision == "float32" or (train.precision == "auto" and device == "cpu")
    closed_form = experiment.objective == "supervised" and experiment.model.backbone == "frozen" and float32
    plain_update = optim.name == "adamw" and optim.clip_norm is None and not optim.ema_decay and train.accumulate == 1
    if not (closed_form and plain_update and train.max_steps and not train.gradient_cosine):
        return None
    plan = MixingPlan.of(experiment)
    own = plan.scheduled if plan.alternate or plan.warm_start_steps else ()  # a corpus of weight 0 then has no update
    weights = {name: str(plan.loss_weight[name]) if name in own else None for name in plan.corpora}
    return hash_of([deciding(experiment, "pack"), weights])


def shapes_of(run: TrainingRun) -> tuple[object, ...]:
    """Return what must be equal in a pack and only the data tell: the shapes of a run's weights."""
    return tuple((name, tuple(value.shape)) for name, value in run.model.state_dict().items())


def train_together(
    runs: Sequence[TrainingRun], on_evaluation: Callable[[TrainingRun, Evaluation], None]
) -> list[InputError | None]:
    """Train runs of one `pack_label` and equal `shapes_of` to their ends; returns what ended each, None where well.

    Args:
        runs: K of them; those that share `data` and seed share their batches.
        on_evaluation: is called for each of them in turn after every evaluation.
    """
    order = sorted(range(len(runs)), key=lambda index: runs[index].experiment.optim.model_dump_json())
    failures: dict[int, InputError] = {}
    pack = _Pack([runs[index] for index in order])
    while order:
        trained_steps = pack.train()
        for place, index in enumerate(order):
            run, trained = runs[index], trained_steps[place]
            try:
                if isinstance(trained, NonFiniteError):
                    raise trained
                on_evaluation(run, run.evaluate(trained))
            except InputError as error:
                failures[index] = error
        kept = [
            place for place, index in enumerate(order) if index not in failures and not runs[index].progress.finished
        ]
        if len(kept) < len(order):
            order = [order[place] for place in kept]
            pack = pack.keep(kept) if kept else pack
    return [failures.get(index) for index in range(len(runs))]


class _Pack:
    """K running runs, their weights and moments stacked."""

    def __init__(self, runs: Sequence[TrainingRun]) -> None:
        self._runs = list(runs)
        self._plans = [MixingPlan.of(run.experiment) for run in runs]
        self._plan = self._plans[0]  # the same for all but for its weights
        self._is_scheduled = any(plan.scheduled for plan in self._plans)
        smoothing = runs[0].experiment.train.label_smoothing
        self._heads = StackedHeads([run.model for run in runs], self._plan.corpora, label_smoothing=smoothing)
        self._optimizer = StackedAdamW(self._heads, [run.experiment for run in runs])
        keys = [(id(run.data), run.experiment.seed) for run in runs]
        distinct = list(dict.fromkeys(keys))
        self._sources = [
            runs[keys.index(key)] for key in distinct
        ]  # of batches: runs of equal data and seed share them
        self._source_of = [distinct.index(key) for key in keys]
        self._weights_KM = self._loss_weights(runs[0].progress.step)
        self._last_update: Update | None = None

    def keep(self, places: Sequence[int]) -> _Pack:
        """Return the pack of some of the runs, which goes on where this one is."""
        smaller = _Pack([self._runs[place] for place in places])
        smaller._optimizer.take_over(self._optimizer.state(), places)
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
            for group in self._plan.step(step).groups:
                waiting = time.perf_counter()
                batches = self._batches(step, group)
                wait_s += time.perf_counter() - waiting
                if batches is None:
                    continue
                counts = batches[0].global_counts
                losses_KM = self._heads.backward(batches, self._weights_KM[:, self._columns(tuple(counts))])
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
            diverged.get(place)
            or TrainedSteps(
                until=stop,
                last_update=self._last_update,
                losses={corpus: values[place] for corpus, values in means.items()},
                samples=samples,
                train_s=share_s,
                data_wait_s=share_wait_s,
            )
            for place in range(num_runs)
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
        for place, of_run in enumerate(losses):
            bad = tuple(corpus for corpus, loss in zip(corpora, of_run, strict=True) if not math.isfinite(loss))
            if bad and place not in diverged:
                error = NonFiniteError(bad, corpora)
                diverged[place] = self._runs[place].divergence(error, step, self._last_update)

    def _loss_weights(self, step: int) -> Tensor:
        weights = [plan.loss_weights(step) for plan in self._plans]
        rows = [[of_run[corpus] for corpus in self._plan.corpora] for of_run in weights]
        return torch.tensor(rows, device=self._heads.device)

    def _columns(self, corpora: tuple[str, ...]) -> list[int]:
        return [self._plan.corpora.index(corpus) for corpus in corpora]
