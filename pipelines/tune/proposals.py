"""What a sweep trains next: one search a group, with equal budgets.

In: a space, and the results that come in. Out: `TrialSpec`s until every group (an arm, condition and seed) has had its
points. Grids and random draws are known beforehand; TPE proposes as it learns.

Ray Tune's own searchers do not fit: OptunaSearch has one study for all trials and may repeat a point, and neither it
nor BasicVariantGenerator knows of groups, their budgets, packs, or the folder that a killed sweep goes on from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.progress import StepProgress
from pipelines.tune.folder import TrialResult
from uml_core.config import Experiment, TuneConfig
from uml_core.errors import InputError
from uml_core.sweeps.space import GroupName, Space, TrialSpec, check_effect, groups_of, points_per_group, trials_of
from uml_core.training.packs import WITHOUT_STEPS, pack_label

MAX_PACK = 8  # trials that one process trains at once: more of them gain little, and the progress bar waits for all
MAX_SOLVED_PACK = 64  # that it takes in turn: a head in closed form takes milliseconds, one of Tune's own trials more


class Proposals:
    """The trials of a sweep whose points are known beforehand, and which of them are still to run."""

    def __init__(self, space: Space, experiment: Experiment, *, max_trials: int | None = None) -> None:
        self._experiment = experiment
        self.budget = points_per_group(space, max_trials)  # of each arm
        self.total = sum(self.budget[group.arm.name] for group in groups_of(space))
        self.specs: dict[str, TrialSpec] = {}  # proposed so far, or known to come, by their keys
        self._labels: dict[str, str | None] = {}
        self._add_known(space, max_trials)

    def _add_known(self, space: Space, max_trials: int | None) -> None:
        self.specs |= {spec.key: spec for spec in trials_of(space, self._experiment, max_trials=max_trials)}
        self._waiting = dict(self.specs)

    def examples(self) -> list[TrialSpec]:
        """Trials that name the sweep, and on which the user's data is checked: one of every group at least."""
        return list(self.specs.values())

    @property
    def num_left(self) -> int:
        return len(self._waiting)

    def take_over(self, results: Mapping[str, TrialResult]) -> None:
        """Learn what a killed sweep has left, by key and in the order in which trials ended; the rest is proposed."""
        for key in results:
            del self._waiting[key]

    def next_pack(self, processes: int) -> list[TrialSpec]:
        """The next trials that a process trains at once, all of one `pack_label`; none where none is left.

        As many as leave work for every process: packs shrink towards the end. Trials of one seed share batches, and
        come first.
        """
        if not self._waiting:
            return []
        first, spec = next(iter(self._waiting.items()))
        label, seed = self._label(first), spec.experiment.seed
        alike = [first] if label is None else [key for key in self._waiting if self._label(key) == label]
        alike.sort(key=lambda key: self._waiting[key].experiment.seed != seed)  # stable: otherwise in the space's order
        most = MAX_SOLVED_PACK if label == WITHOUT_STEPS else MAX_PACK
        return [self._waiting.pop(key) for key in alike[: self._pack_size(processes, most)]]

    def _pack_size(self, processes: int, most: int) -> int:
        settings = self._experiment.tune
        if settings.stopping != "none":  # one of several could not be stopped alone
            return 1
        return min(most, -(-self.num_left // processes)) if settings.pack == "auto" else settings.pack

    def _label(self, key: str) -> str | None:
        if key not in self._labels:
            device = "cuda" if self._experiment.tune.gpus_per_trial else "cpu"
            self._labels[key] = pack_label(self.specs[key].experiment, device=device)
        return self._labels[key]

    def tell(self, key: str, result: TrialResult) -> None:
        """Take note of an ended trial."""


class TpeProposals(Proposals):
    """Proposes with one TPE search a group; a resumed sweep finds in the folder what was proposed."""

    def _add_known(self, space: Space, max_trials: int | None) -> None:
        from uml_core.sweeps.tpe import TpeSearch  # Optuna takes a second to import, and only this search needs it

        check_effect(space, self._experiment)
        self._groups = {group.name: group for group in groups_of(space)}
        self._axes = {name: space.grid_of(group.arm) for name, group in self._groups.items()}
        num_objectives = len(self._experiment.tune.objectives)
        self._searches = {
            name: TpeSearch(self._axes[name], stream=f"{group.label} {group.seed}", num_objectives=num_objectives)
            for name, group in self._groups.items()
        }

    def examples(self) -> list[TrialSpec]:
        return [
            group.spec(self._experiment, {key: values[0] for key, values in self._axes[name].items()})
            for name, group in self._groups.items()
        ]

    @property
    def num_left(self) -> int:
        return self.total - sum(search.num_tried for search in self._searches.values())

    def take_over(self, results: Mapping[str, TrialResult]) -> None:
        for key, result in results.items():
            self._add(result.group, self._point(result.group, result.overrides))
            assert key in self.specs, f"result {key} is of another sweep"
            self.tell(key, result)

    def next_pack(self, processes: int) -> list[TrialSpec]:
        """A point of the group that has had the fewest, so that arms and seeds advance side by side."""
        tried = {name: search.num_tried for name, search in self._searches.items()}
        open_groups = [name for name, group in self._groups.items() if tried[name] < self.budget[group.arm.name]]
        if not open_groups:
            return []
        name = min(open_groups, key=lambda name: tried[name])
        point = self._searches[name].propose()
        assert point is not None, "a group's budget is at most its grid"
        return [self._add(name, point)]

    def tell(self, key: str, result: TrialResult) -> None:
        """Let the group's search learn from an ended trial."""
        spec = self.specs[key]
        values = [result.val_accuracy, result.cost][: len(self._experiment.tune.objectives)]
        self._searches[spec.group].tell(self._point(spec.group, spec.overrides), None if result.error else values)

    def _add(self, group: GroupName, point: Mapping[str, Any]) -> TrialSpec:
        spec = self._groups[group].spec(self._experiment, point)
        self.specs[spec.key] = spec
        return spec

    def _point(self, group: GroupName, overrides: Mapping[str, Any]) -> dict[str, Any]:
        return {key: overrides[key] for key in self._axes[group]}


def build_proposals(space: Space, experiment: Experiment, *, max_trials: int | None = None) -> Proposals:
    """The proposals of tune.search."""
    kind = TpeProposals if experiment.tune.search == "tpe" else Proposals
    return kind(space, experiment, max_trials=max_trials)


def trials_shown(proposals: Proposals) -> StepProgress:
    """The line of a sweep's trials, which shows those of a killed one as done."""
    shown = StepProgress("starting trials")
    shown.counts("trials", proposals.total, unit="trials")
    shown.adds(proposals.total - proposals.num_left)
    return shown


def trial_resources(settings: TuneConfig, *, cpus: int, gpus: int) -> tuple[dict[str, float], int]:
    """What a process of the sweep reserves, and how many run at once.

    Raises InputError where a trial wants more GPUs than one, or than the cluster has.
    """
    wanted, most = settings.gpus_per_trial, min(cpus, settings.max_concurrent_trials or cpus)
    if not wanted:
        return {"cpu": 1}, most
    if wanted > 1:
        raise InputError(f"tune.gpus_per_trial is {wanted:g}, but a trial trains on one GPU or a share; give at most 1")
    if gpus < wanted:
        raise InputError(
            f"tune.gpus_per_trial is {wanted:g}, but the cluster has {gpus} GPUs; lower it (0 trains on CPUs)"
        )
    return {"cpu": 1, "gpu": wanted}, min(most, int(gpus / wanted))
