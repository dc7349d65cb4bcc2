"""What a sweep trains next: proposals for Ray Tune, one search in each arm, condition and seed, with equal budgets.

In: a space, and the results that come in. Out: `TrialSpec`s until every group has had its points. Grids and random
draws are known beforehand; TPE proposes as it learns. Schedulers that stop poor trials compare within a group only: an
arm is never stopped because another arm does better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher

from pipelines.tune.folder import Assignment, TrialResult, assignments_of, trial_config
from uml_core.config import Experiment, TuneConfig
from uml_core.errors import InputError
from uml_core.sweeps.space import (
    Group,
    GroupName,
    Space,
    TrialSpec,
    check_effect,
    groups_of,
    points_per_group,
    trials_of,
)
from uml_core.training.packs import pack_label

STOPPING_METRIC = "val_accuracy"
MAX_PACK = 8  # trials that one process trains at once: more of them gain little, and the progress bar waits for all
GRACE_SHARE, REDUCTION = 0.1, 3  # of max_steps before a trial may be stopped; ASHA keeps a third at every rung


TakesGroup = Callable[[GroupName], bool]


def every_group(group: GroupName) -> bool:
    """Take every group."""
    return True


class Proposals:
    """The trials of a sweep: those that are known, and those still to be proposed."""

    def __init__(self, space: Space, experiment: Experiment, *, max_trials: int | None = None) -> None:
        self.specs: dict[str, TrialSpec] = {}
        self.budget = points_per_group(space, max_trials)
        self.total = sum(self.budget[group.arm.name] for group in groups_of(space))
        self._experiment = experiment
        self._waiting: list[TrialSpec] = []
        self._labels: dict[str, str | None] = {}
        self._add(trials_of(space, experiment, max_trials=max_trials))

    def check_specs(self) -> list[TrialSpec]:
        """Return trials that name the sweep, and on which the user's data is checked: one of every arm at least."""
        return list(self.specs.values())

    def take_over(self, results: Mapping[str, TrialResult]) -> None:
        """Learn what a killed sweep has left, by trials' keys; only the rest is proposed."""
        self._waiting = [spec for spec in self._waiting if spec.key not in results]

    def next_pack(self, processes: int | None, takes: TakesGroup = every_group) -> list[TrialSpec]:
        """Return the next trials to train at once, of groups that are taken and of one label; none where none is left.

        As many as leave work for every process: packs shrink towards the end. Trials of one seed share batches, and
        come first. Without `processes` every trial trains alone.
        """
        waiting = [spec for spec in self._waiting if takes(spec.group)]
        if not waiting:
            return []
        label = self._label(waiting[0])
        alike = [spec for spec in waiting if self._label(spec) == label] if label is not None else waiting[:1]
        alike.sort(key=lambda spec: spec.experiment.seed != waiting[0].experiment.seed)
        pack = alike[: self._pack_size(len(waiting), processes)]
        self._waiting = [spec for spec in self._waiting if spec not in pack]
        return pack

    def num_left(self, takes: TakesGroup = every_group) -> int:
        """Return how many trials of the groups that are taken are still to run."""
        return sum(takes(spec.group) for spec in self._waiting)

    def _pack_size(self, num_waiting: int, processes: int | None) -> int:
        settings = self._experiment.tune
        if settings.stopping != "none" or processes is None:
            return 1
        return min(MAX_PACK, -(-num_waiting // processes)) if settings.pack == "auto" else settings.pack

    def _label(self, spec: TrialSpec) -> str | None:
        if spec.key not in self._labels:
            device = "cuda" if self._experiment.tune.gpus_per_trial else "cpu"
            self._labels[spec.key] = pack_label(spec.experiment, device=device)
        return self._labels[spec.key]

    def tell(self, key: str, result: TrialResult) -> None:
        """Take note of an ended trial."""

    def _add(self, specs: Sequence[TrialSpec]) -> None:
        self.specs |= {spec.key: spec for spec in specs}
        self._waiting += specs


class TpeProposals(Proposals):
    """Proposes with one TPE search a group; a resumed sweep finds in the folder what was proposed."""

    def __init__(self, space: Space, experiment: Experiment, *, max_trials: int | None = None) -> None:
        from uml_core.sweeps.tpe import TpeSearch  # Optuna takes a second to import, and only this search needs it

        check_effect(space, experiment)
        self.specs = {}
        self.budget = points_per_group(space, max_trials)
        self._experiment = experiment
        self._groups = {group.name: group for group in groups_of(space)}
        self._axes = {name: space.grid_of(group.arm) for name, group in self._groups.items()}
        self._searches = {
            name: TpeSearch(
                self._axes[name],
                stream=f"{group.label} {group.seed}",
                num_objectives=len(experiment.tune.objectives),
            )
            for name, group in self._groups.items()
        }
        self._points: dict[str, Mapping[str, Any]] = {}
        self.total = sum(self.budget[group.arm.name] for group in self._groups.values())

    def check_specs(self) -> list[TrialSpec]:
        """Return one trial of every group, at the first values of its grid."""
        return [
            group.spec(self._experiment, {key: values[0] for key, values in self._axes[name].items()})
            for name, group in self._groups.items()
        ]

    def take_over(self, results: Mapping[str, TrialResult]) -> None:
        """Rebuild specs and searches from results by trials' keys, in the order in which they ended."""
        for key, result in results.items():
            point = {axis: result.overrides[axis] for axis in self._axes[result.group]}
            self._note(self._groups[result.group], point)
            assert key in self.specs, f"result {key} is of another sweep"
            self.tell(key, result)

    def next_pack(self, processes: int | None, takes: TakesGroup = every_group) -> list[TrialSpec]:
        """Return a point of the group that has had the fewest, so that arms and seeds advance side by side."""
        open_groups = [name for name in self._groups if takes(name) and self._num_left(name)]
        if not open_groups:
            return []
        name = min(open_groups, key=lambda name: self._searches[name].num_tried)
        point = self._searches[name].propose()
        assert point is not None, "a group's budget is at most its grid"
        return [self._note(self._groups[name], point)]

    def num_left(self, takes: TakesGroup = every_group) -> int:
        """Return how many trials of the groups that are taken are still to run."""
        return sum(self._num_left(name) for name in self._groups if takes(name))

    def _num_left(self, name: GroupName) -> int:
        return self.budget[self._groups[name].arm.name] - self._searches[name].num_tried

    def tell(self, key: str, result: TrialResult) -> None:
        """Let the group's search learn from an ended trial."""
        search = self._searches[self.specs[key].group]
        values = [result.val_accuracy, result.cost][: len(self._experiment.tune.objectives)]
        search.tell(self._points[key], None if result.error else values)

    def _note(self, group: Group, point: Mapping[str, Any]) -> TrialSpec:
        spec = group.spec(self._experiment, point)
        self.specs[spec.key], self._points[spec.key] = spec, point
        return spec


class SweepSearcher(Searcher):
    """Hands proposals to Ray Tune: one of its trials trains one or several of ours."""

    def __init__(self, proposals: Proposals, takes: TakesGroup = every_group, *, processes: int | None) -> None:
        super().__init__(metric=STOPPING_METRIC, mode="max")
        self._proposals, self._takes, self._processes = proposals, takes, processes

    def suggest(self, trial_id: str) -> Any:
        """Return the configuration of the next trials."""
        pack = self._proposals.next_pack(self._processes, self._takes)
        if not pack:
            return Searcher.FINISHED
        return trial_config([Assignment(spec.key, spec.group, spec.overrides) for spec in pack])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Results reach the proposals from the sweep's folder."""

    def save(self, checkpoint_path: str) -> None:
        """Store nothing: the sweep's folder is what a sweep resumes from."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing is stored."""


class GroupedScheduler(FIFOScheduler):
    """One scheduler for each arm, condition and seed: trials are stopped for their own rivals' sake only."""

    def __init__(self, settings: TuneConfig, max_steps: int) -> None:
        super().__init__()
        self._settings, self._max_steps = settings, max_steps
        self._schedulers: dict[tuple[str, str, int], TrialScheduler] = {}

    def _of(self, trial: Any) -> TrialScheduler:
        group = assignments_of(trial.config)[0].group
        if group not in self._schedulers:
            self._schedulers[group] = stopping_rule(self._settings, self._max_steps)
        return self._schedulers[group]

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Tell the trial's own scheduler."""
        self._of(trial).on_trial_add(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Tell the trial's own scheduler."""
        self._of(trial).on_trial_error(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Let the trial's own scheduler decide."""
        return self._of(trial).on_trial_result(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Tell the trial's own scheduler."""
        self._of(trial).on_trial_complete(tune_controller, trial, result)


def stopping_rule(settings: TuneConfig, max_steps: int) -> TrialScheduler:
    """Return a scheduler of one group's trials, by optimiser steps."""
    grace = max(1, round(GRACE_SHARE * max_steps))
    if settings.stopping == "asha":
        return AsyncHyperBandScheduler(
            time_attr="step",
            metric=STOPPING_METRIC,
            mode="max",
            max_t=max(max_steps, grace + 1),
            grace_period=grace,
            reduction_factor=REDUCTION,
            stop_last_trials=False,
        )
    return MedianStoppingRule(
        time_attr="step",
        metric=STOPPING_METRIC,
        mode="max",
        grace_period=grace,
        min_time_slice=float("inf"),  # never pause: a paused trial would begin anew
    )


def proposals_of(space: Space, experiment: Experiment, *, max_trials: int | None = None) -> Proposals:
    """Return the proposals of tune.search."""
    kind = TpeProposals if experiment.tune.search == "tpe" else Proposals
    return kind(space, experiment, max_trials=max_trials)


def scheduler_of(experiment: Experiment) -> TrialScheduler:
    """Return what decides whether a trial goes on: tune.stopping."""
    if experiment.tune.stopping == "none":
        return FIFOScheduler()
    return GroupedScheduler(experiment.tune, experiment.train.max_steps)


def trial_resources(settings: TuneConfig, *, cpus: int, gpus: int) -> tuple[dict[str, float], int]:
    """Return what a trial holds, and how many run at once.

    Raises:
        InputError: trials want GPUs that the cluster does not have.
    """
    wanted = min(1.0, settings.gpus_per_trial)  # a process trains on one
    most = settings.max_concurrent_trials or cpus
    if not wanted:
        return {"cpu": 1}, min(cpus, most)
    check_gpus(settings, wanted, gpus)
    return {"cpu": 1, "gpu": wanted}, min(cpus, most, max(1, int(gpus / wanted)))


def check_gpus(settings: TuneConfig, wanted: float, gpus: int) -> None:
    """Raise InputError where a trial wants more GPUs than the cluster has."""
    if gpus < wanted:
        raise InputError(
            f"tune.gpus_per_trial is {settings.gpus_per_trial:g}, but the cluster has {gpus} GPUs; "
            "lower it (0 trains on CPUs)"
        )
