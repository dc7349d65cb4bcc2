"""What a space is, where spaces are found, and the trials they amount to."""

from __future__ import annotations

import importlib.util
import itertools
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from uml_core.config import Experiment, hash_of
from uml_core.errors import InputError, listing, nearest

Overrides = Mapping[str, Any]


@dataclass(frozen=True)
class Arm:
    """One thing to compare: overrides of the experiment, and a grid of its own to search."""

    name: str
    overrides: Overrides = field(default_factory=dict)
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Space:
    """Arms × conditions × grid × seeds, and which arm is the claim and which the baseline."""

    question: str
    arms: tuple[Arm, ...]
    baseline: str
    headline: str
    seeds: tuple[int, ...]
    conditions: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class TrialSpec:
    """One trial: its arm, what it is compared under, and the experiment it trains."""

    arm: str
    condition: str  # canonical text of the condition's values
    experiment: Experiment

    @property
    def key(self) -> str:
        """A name that is the same in every run of the same sweep."""
        return hash_of([self.arm, self.experiment.config_hash])

    @property
    def group(self) -> tuple[str, str, int]:
        """Trials among which one is selected on validation: (arm, condition, seed)."""
        return self.arm, self.condition, self.experiment.seed


def load_space(name_or_file: str, experiment: Experiment) -> Space:
    """Build a space by name (a file in tune_spaces/) or from a user's own file.

    Raises:
        InputError: there is no such space, the file lacks `build`, or the space does not fit the experiment.
    """
    module = _module(name_or_file)
    build = getattr(module, "build", None)
    if build is None:
        raise InputError(f"space {name_or_file} has no function build(experiment) -> Space (see tune_spaces/)")
    space = build(experiment)
    if not isinstance(space, Space):
        raise InputError(f"build() of space {name_or_file} returned a {type(space).__name__}; expected a Space")
    names = [arm.name for arm in space.arms]
    for role, arm in (("baseline", space.baseline), ("headline", space.headline)):
        if arm not in names:
            raise InputError(f"space {name_or_file} names {role} '{arm}', which is not among its arms {listing(names)}")
    if not space.seeds:
        raise InputError(f"space {name_or_file} has no seeds; give at least one")
    return space


def trials_of(space: Space, experiment: Experiment, *, max_trials: int | None = None) -> list[TrialSpec]:
    """Return every trial of a space, each through the experiment's own validation.

    `max_trials` keeps as many grid points as fit, the same number in every (arm, condition, seed).

    Raises:
        InputError: a key or corpus does not exist, a value is not allowed, two trials are the same, or `max_trials`
            does not leave one grid point each.
    """
    conditions = _product(space.conditions)
    grids = {arm.name: _product({**space.grid, **arm.grid}) for arm in space.arms}
    if any(not points for points in (conditions, *grids.values())):
        raise InputError("the space is empty: a key has no values; give each key at least one")
    if max_trials is not None:
        grids = _thinned(grids, max_trials, per_point=len(conditions) * len(space.seeds))
    specs = []
    for condition, arm, seed in itertools.product(conditions, space.arms, space.seeds):
        for point in grids[arm.name]:
            overrides = {"seed": seed, "data.split_seed": seed, **condition, **arm.overrides, **point}
            label = ",".join(f"{key}={value}" for key, value in condition.items())
            specs.append(TrialSpec(arm.name, label, experiment.override(overrides)))
    if len({spec.key for spec in specs}) < len(specs):
        raise InputError("the space holds the same trial twice: one of its keys changes nothing in the experiment")
    return specs


def _product(axes: Mapping[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _thinned(
    grids: Mapping[str, list[dict[str, Any]]], max_trials: int, *, per_point: int
) -> dict[str, list[dict[str, Any]]]:
    """Return grids cut at random to the same number of points in every arm (fewer only where an arm has fewer)."""
    least = per_point * len(grids)
    if max_trials < least:
        raise InputError(
            f"--trials is {max_trials}; this space needs at least {least} (one for every arm, condition and seed)"
        )
    points = max_trials // least
    rng = random.Random(0)
    return {arm: grid if len(grid) <= points else rng.sample(grid, points) for arm, grid in grids.items()}


def available_spaces() -> list[str]:
    """Return the names of the spaces in tune_spaces/."""
    files: Iterable[Path] = Path(__file__).parent.glob("*.py")
    return sorted(file.stem for file in files if file.stem not in ("__init__", "space"))


def _module(name_or_file: str) -> ModuleType:
    names = available_spaces()
    is_file = name_or_file.endswith(".py")
    file = Path(name_or_file) if is_file else Path(__file__).parent / f"{name_or_file}.py"
    if not file.is_file() or (not is_file and name_or_file not in names):
        raise InputError(
            f"--space is {name_or_file}; spaces are {listing(names)}{nearest(name_or_file, names)}, or a file of yours"
        )
    spec = importlib.util.spec_from_file_location(f"tune_space_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, ImportError) as error:
        raise InputError(f"space file {file} cannot be read: {error}") from None
    return module


def shots_conditions(experiment: Experiment) -> dict[str, tuple[Any, ...]]:
    """Return the shots an experiment wants compared: tune.shots, else data.shots alone."""
    return {"data.shots": experiment.tune.shots or (experiment.data.shots,)}


def lr_grid(experiment: Experiment) -> dict[str, tuple[Any, ...]]:
    """Return the learning rates an experiment wants searched in every arm, or no axis."""
    return {"optim.lr": experiment.tune.lr} if experiment.tune.lr else {}


def seeds_of(experiment: Experiment) -> tuple[int, ...]:
    """Return the paired seeds: tune.seeds of them, counted from the experiment's own."""
    return tuple(experiment.seed + index for index in range(experiment.tune.seeds))


def related_auxiliaries(experiment: Experiment) -> tuple[str, ...]:
    """Return the auxiliary corpora that are no unrelated controls. Raises InputError if there are none."""
    names = tuple(name for name in experiment.auxiliaries if experiment.corpora[name].control != "unrelated")
    if not names:
        raise InputError(
            f"experiment {experiment.name} has no auxiliary corpus beside its target '{experiment.target}', "
            "so there is nothing to mix; add one under corpora"
        )
    return names
