"""What a space is, where spaces are found, and the trials they amount to."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from uml_core.config import Experiment, hash_of
from uml_core.errors import InputError, listing, nearest
from uml_core.plugins import module_of_file
from uml_core.sweeps.effect import refuse_what_changes_nothing

Overrides = Mapping[str, Any]
Grid = tuple[Any, ...]
GroupName = tuple[str, str, int]  # arm, condition, seed


@dataclass(frozen=True)
class Arm:
    """One thing to compare: overrides of the experiment, and a grid of its own to search."""

    name: str
    overrides: Overrides = field(default_factory=dict)
    grid: Mapping[str, Grid] = field(default_factory=dict)


@dataclass(frozen=True)
class Space:
    """Arms × conditions × grid × seeds, and which arm is the claim and which the baseline.

    Every arm trains equally many points of its grid: larger grids are thinned at random to the smallest one. Where an
    arm has nothing to search, a space may waive that with `equal_budget=False`; no gain is then claimed.
    """

    question: str
    arms: tuple[Arm, ...]
    baseline: str
    headline: str
    seeds: tuple[int, ...]
    conditions: Mapping[str, Grid] = field(default_factory=dict)
    grid: Mapping[str, Grid] = field(default_factory=dict)
    equal_budget: bool = True

    def grid_of(self, arm: Arm) -> Mapping[str, Grid]:
        """Return everything an arm searches: the space's grid and its own."""
        return {**self.grid, **arm.grid}


@dataclass(frozen=True)
class TrialSpec:
    """One trial: its arm, what it is compared under, and the experiment it trains."""

    arm: str
    condition: str  # canonical text of the condition's values
    experiment: Experiment
    overrides: Overrides = field(default_factory=dict)  # what makes it of the sweep's own experiment

    @property
    def key(self) -> str:
        """A name that is the same in every run of the same sweep."""
        return hash_of([self.arm, self.experiment.config_hash])

    @property
    def group(self) -> GroupName:
        """Trials among which one is selected on validation: (arm, condition, seed)."""
        return self.arm, self.condition, self.experiment.seed


@dataclass(frozen=True)
class Group:
    """The trials of one arm, condition and seed: what is searched together, and selected from."""

    arm: Arm
    condition: Mapping[str, Any]
    seed: int

    def spec(self, experiment: Experiment, point: Mapping[str, Any]) -> TrialSpec:
        """Return the trial of one point of the grid. Raises InputError for a key or value that is not allowed."""
        overrides = {**pairing(self.seed), **self.condition, **self.arm.overrides, **point}
        return TrialSpec(self.arm.name, self.label, experiment.override(overrides), overrides)

    @property
    def label(self) -> str:
        """The condition's values as canonical text."""
        return ",".join(f"{key}={value}" for key, value in self.condition.items())

    @property
    def name(self) -> GroupName:
        """What its trials have as `TrialSpec.group`."""
        return self.arm.name, self.label, self.seed


def load_space(name_or_file: str, experiment: Experiment, *, folder: Path) -> Space:
    """Build a space by its name in a folder of spaces, or from a user's own file, and check it as a whole.

    Raises:
        InputError: there is no such space, the file lacks `build`, or the space does not fit the experiment.
    """
    module = _module(name_or_file, folder)
    build = getattr(module, "build", None)
    if build is None:
        raise InputError(f"space {name_or_file} has no function build(experiment) -> Space (see tune_spaces/)")
    space = build(experiment)
    if not isinstance(space, Space):
        raise InputError(f"build() of space {name_or_file} returned a {type(space).__name__}; expected a Space")
    names = [arm.name for arm in space.arms]
    for role, arm in (("baseline", space.baseline), ("headline", space.headline)):
        if arm not in names:
            known = listing(names) or "(it has none)"
            raise InputError(f"space {name_or_file} names {role} '{arm}', which is not among its arms {known}")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"space {name_or_file} has two arms named '{twice}'; give each a name of its own")
    if not space.seeds:
        raise InputError(f"space {name_or_file} has no seeds; give at least one")
    return space


def groups_of(space: Space) -> list[Group]:
    """Return every (arm, condition, seed) of a space, the arms of one condition and seed beside one another."""
    return [
        Group(arm, condition, seed)
        for condition, seed, arm in itertools.product(product_of(space.conditions), space.seeds, space.arms)
    ]


def points_per_group(space: Space, max_trials: int | None = None) -> dict[str, int]:
    """Return how many points of its grid each arm trains in every condition and seed: the same number in every arm.

    Raises:
        InputError: a key has no values, an arm has nothing to search while another has, or `max_trials` does not leave
            one point each.
    """
    sizes = {arm.name: len(product_of(space.grid_of(arm))) for arm in space.arms}
    conditions = product_of(space.conditions)
    if not conditions or not all(sizes.values()):
        raise InputError("the space is empty: a key has no values; give each key at least one")
    if space.equal_budget and min(sizes.values()) == 1 < max(sizes.values()):
        alone = min(sizes, key=lambda name: sizes[name])
        widest = max(sizes, key=lambda name: sizes[name])
        raise InputError(
            f"arm {alone} of the space has nothing to search, while arm {widest} has {sizes[widest]} points: the best "
            f"of many against one is no fair comparison; give {alone} a grid too (optim.lr), or say "
            "Space(equal_budget=False), and no gain will be claimed"
        )
    if max_trials is not None:
        least = len(space.arms) * len(conditions) * len(space.seeds)
        if max_trials < least:
            raise InputError(
                f"--trials is {max_trials}; this space needs at least {least} (one for every arm, condition and seed)"
            )
        sizes = {name: min(size, max_trials // least) for name, size in sizes.items()}
    return dict.fromkeys(sizes, min(sizes.values())) if space.equal_budget else sizes


def trials_of(space: Space, experiment: Experiment, *, max_trials: int | None = None) -> list[TrialSpec]:
    """Return the trials of a space, each through the experiment's own validation.

    Grids with more points than are trained are thinned at random: the same points in every condition and seed, or with
    tune.search=random others in each, the same ones in arms of the same grid.

    Raises:
        InputError: a key or corpus does not exist, a value is not allowed, a key changes nothing that is trained, two
            trials are the same, or the budget is refused (see `points_per_group`).
    """
    counts, afresh = points_per_group(space, max_trials), experiment.tune.search == "random"
    specs = [
        group.spec(experiment, point)
        for group in groups_of(space)
        for point in drawn_points(space.grid_of(group.arm), counts[group.arm.name], group if afresh else None)
    ]
    if len({spec.key for spec in specs}) < len(specs):
        raise InputError("the space holds the same trial twice: a key has a value twice; remove one of them")
    check_effect(space, experiment)
    return specs


def drawn_points(axes: Mapping[str, Grid], count: int, group: Group | None = None) -> list[dict[str, Any]]:
    """Return so many points of a grid: all of them in order, or as many drawn at random (for a group: its own draw)."""
    grid = product_of(axes)
    stream = "" if group is None else f"{group.label} {group.seed}"
    return grid if len(grid) <= count else random.Random(stream).sample(grid, count)


def check_effect(space: Space, experiment: Experiment) -> None:
    """Refuse a space with a key, or an arm, that changes nothing of what is trained (see `uml_core.sweeps.effect`)."""
    condition, seed = product_of(space.conditions)[0], space.seeds[0]

    def tried(arm: Arm, key: str, values: Grid) -> list[Experiment]:
        return [Group(arm, condition, seed).spec(experiment, {key: value}).experiment for value in values]

    for key, values in {**space.conditions, **space.grid}.items():
        refuse_what_changes_nothing(f"key {key}", [tried(arm, key, values) for arm in space.arms])
    for arm in space.arms:
        for key, values in arm.grid.items():
            refuse_what_changes_nothing(f"key {key} of arm {arm.name}", [tried(arm, key, values)])
    firsts = {
        arm.name: Group(arm, condition, seed).spec(experiment, product_of(space.grid_of(arm))[0]).experiment
        for arm in space.arms
    }
    for one, other in itertools.combinations(space.arms, 2):
        if one.grid == other.grid:
            pair = [firsts[one.name], firsts[other.name]]
            refuse_what_changes_nothing(f"arms {one.name} and {other.name}", [pair])


def product_of(axes: Mapping[str, Grid]) -> list[dict[str, Any]]:
    """Return every combination of the axes' values; one empty combination where there are no axes."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def spaces_in(folder: Path) -> list[str]:
    """Return the names of a folder's spaces, one a file."""
    return sorted(file.stem for file in folder.glob("*.py") if file.stem != "__init__")


def _module(name_or_file: str, folder: Path) -> ModuleType:
    names = spaces_in(folder)
    is_file = name_or_file.endswith(".py")
    file = Path(name_or_file) if is_file else folder / f"{name_or_file}.py"
    if not file.is_file() or (not is_file and name_or_file not in names):
        raise InputError(
            f"--space is {name_or_file}; spaces are {listing(names, limit=20)}{nearest(name_or_file, names)}, "
            "or a file of yours"
        )
    return module_of_file(file, setting=f"--space is {name_or_file}")


def seeds_of(experiment: Experiment) -> tuple[int, ...]:
    """Return the paired seeds of a sweep: tune.seeds of them."""
    return counted_seeds(experiment, experiment.tune.seeds)


def counted_seeds(experiment: Experiment, count: int) -> tuple[int, ...]:
    """Return so many seeds, counted from the experiment's own."""
    return tuple(experiment.seed + index for index in range(count))


def pairing(seed: int) -> dict[str, Any]:
    """Return what all that is compared at a seed has in common: start and batches, splits and few-shot subset."""
    return {"seed": seed, "data.split_seed": seed}


def shots_conditions(experiment: Experiment) -> dict[str, tuple[Any, ...]]:
    """Return the shots an experiment wants compared: tune.shots, else data.shots alone."""
    return {"data.shots": experiment.tune.shots or (experiment.data.shots,)}


def lr_grid(experiment: Experiment) -> dict[str, tuple[Any, ...]]:
    """Return the learning rates an experiment wants searched in every arm, or no axis."""
    return {"optim.lr": experiment.tune.lr} if experiment.tune.lr else {}


def related_auxiliaries(experiment: Experiment) -> tuple[str, ...]:
    """Return the auxiliary corpora that are no unrelated controls. Raises InputError if there are none."""
    names = tuple(name for name in experiment.auxiliaries if experiment.corpora[name].control != "unrelated")
    if not names:
        raise InputError(
            f"experiment {experiment.name} has no auxiliary corpus beside its target '{experiment.target}', "
            "so there is nothing to mix; add one under corpora"
        )
    return names
