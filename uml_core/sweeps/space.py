"""What a space is, where spaces are found, and the trials they amount to.

In: an experiment and a space's file. Out: the trials of a sweep, and the space itself as JSON, which the sweep logs:
all that the report says of arms, it reads from there.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

from pydantic import TypeAdapter, ValidationError

from uml_core.config import Experiment, hash_of
from uml_core.config.used_by import deciding
from uml_core.errors import InputError, listing, nearest
from uml_core.plugins import module_of_file

Overrides = Mapping[str, Any]
NO_STEPS: dict[str, Any] = {
    **{"train.workers": "auto", "train.min_workers": None, "train.twin": False, "train.gradient_cosine": False},
    "optim.name": "adamw",
}
UNTRAINED = ("optim.", "mixing.", "pictures.", "train.")  # sections without effect where no step is made
Grid = tuple[Any, ...]
GroupName = tuple[str, str, int]  # arm, condition, seed
# "" is an arm that is only compared. "method" and "baseline" are variants of the headline and of the baseline.
Plain = Literal["", "method", "baseline"]
# A model that one could use instead of the headline's, and that no unpaired data have trained.
Alternative = Literal["probe", "ridge", "discriminant", "logistic", "pile", "zero_shot"]
ALTERNATIVE_WORDS: dict[str, str] = {
    "probe": "the linear probe",
    "ridge": "ridge",
    "discriminant": "the linear discriminant",
    "logistic": "logistic regression",
    "pile": "the unlabelled pile alone",
    "zero_shot": "the untrained zero-shot head",
}
# "control" is one of a kind that is not listed here: words of the verdict, looks in figures.
Control = Literal["shuffled", "noise", "unrelated", "shuffled_bridge", "control"]
Role = Plain | Alternative | Control


@dataclass(frozen=True)
class Facts:
    """What tables of the report tell of an arm beside its results; an arm that says nothing is in none of them.

    Args:
        corpora: the auxiliary corpora that take part; () is the target alone.
        initialised: whether the head starts from an auxiliary corpus's class means.
        sentences: how many sentences of `corpora` there are per class, in words.
        auxiliary_rows: the most rows per class of every auxiliary corpus; a space of such arms has an exchange rate.
        trained: what of the target's encoder is trained, in words; compared with the arm `against`.
        against: an arm.
    """

    corpora: tuple[str, ...] | None = None
    initialised: bool = False
    sentences: str = ""
    auxiliary_rows: int | None = None
    trained: str = ""
    against: str = ""


@dataclass(frozen=True)
class Arm:
    """One thing to compare: overrides of the experiment, and a grid of its own to search.

    `says` is what it is, in a sentence for the report. A control names in `controls` the arm that must do better than
    it; one that names none controls every arm.
    """

    name: str
    overrides: Overrides = field(default_factory=dict)
    grid: Mapping[str, Grid] = field(default_factory=dict)
    says: str = ""
    role: Role = ""
    controls: str = ""
    facts: Facts = field(default_factory=Facts)

    @property
    def words(self) -> str:
        """What the verdict calls it: "the shuffled control", "the linear probe", else its name."""
        if self.role in get_args(Control):
            return f"the {self.name if self.role == 'control' else self.role.replace('_', ' ')} control"
        return ALTERNATIVE_WORDS.get(self.role, self.name)

    @property
    def is_solved(self) -> bool:
        """Whether its head has a closed form, which searches its own scales, instead of being trained by steps."""
        return str(self.overrides.get("model.head", "paper")) != "paper"

    @property
    def takes_no_step(self) -> bool:
        """Whether nothing of it is trained by steps: its head is solved, or stays as it starts."""
        return self.is_solved or self.overrides.get("train.max_steps") == 0

    @property
    def uses_validation(self) -> bool:
        """Whether validation chose something in it: a step, a rate, a penalty. Its accuracy there then flatters it."""
        return self.role != "zero_shot" and self.overrides.get("model.head") not in ("ridge", "discriminant", "prior")

    @property
    def uses_unpaired(self) -> bool:
        """Whether its model owes something to the auxiliary corpora."""
        return self.role in ("method", "zero_shot") or self.facts.initialised


@dataclass(frozen=True)
class Space:
    """Arms × conditions × grid × seeds, and which arm is the claim and which the baseline.

    Every arm trains equally many points of its grid: larger grids are thinned at random to the smallest one; heads in
    closed form are no part of that. Where an arm has nothing to search, a space may waive that with
    `equal_budget=False`; no gain is then claimed.

    Args:
        needs: controls that must be measured before a gain is claimed, the one that the verdict names first; () where
            the space claims none, None where it does not say.
        subject: what is claimed to help, in words and plural; "" is the auxiliary corpora.
    """

    question: str
    arms: tuple[Arm, ...]
    baseline: str
    headline: str
    seeds: tuple[int, ...]
    conditions: Mapping[str, Grid] = field(default_factory=dict)
    grid: Mapping[str, Grid] = field(default_factory=dict)
    equal_budget: bool = True
    needs: tuple[str, ...] | None = None
    subject: str = ""

    def grid_of(self, arm: Arm) -> Mapping[str, Grid]:
        """Everything an arm searches: the space's grid and its own."""
        return {**({} if arm.is_solved else self.grid), **arm.grid}

    def arm(self, name: str) -> Arm:
        """The arm of that name; one that says nothing where a sweep logged an arm that its space does not have."""
        return next((arm for arm in self.arms if arm.name == name), Arm(name))

    @property
    def controls(self) -> list[Arm]:
        """What the headline must stand above beside the baseline, in the order of the arms: controls, alternatives."""
        roles = get_args(Control) + get_args(Alternative)
        return [arm for arm in self.arms if arm.role in roles and arm.controls in ("", self.headline)]

    @property
    def is_target_alone(self) -> bool:
        """Whether no arm knows another corpus but a pile: each is what one could use without them."""
        return all(arm.role in get_args(Alternative) and not arm.uses_unpaired for arm in self.arms)

    @property
    def takes_no_step(self) -> bool:
        """Whether no arm is trained by steps."""
        return all(arm.takes_no_step for arm in self.arms)

    @property
    def shippable(self) -> list[Arm]:
        """The arms that a user could use: no controls, and no arms that say nothing of their role."""
        return [arm for arm in self.arms if arm.role and arm.role not in get_args(Control)]

    @property
    def has_exchange_rate(self) -> bool:
        """Whether the arms are amounts of auxiliary rows."""
        return any(arm.facts.auxiliary_rows is not None for arm in self.arms)


def space_as_json(space: Space) -> str:
    """The whole space as text; values that JSON lacks become words."""
    return TypeAdapter(Space).dump_json(space, indent=1, fallback=str).decode()


def space_from_json(text: str) -> Space:
    """The space that `space_as_json` wrote."""
    return TypeAdapter(Space).validate_json(text)


@dataclass(frozen=True)
class TrialSpec:
    """One trial: its arm, what it is compared under, and the experiment it trains."""

    arm: str
    condition: str  # canonical text of the condition's values
    experiment: Experiment
    overrides: Overrides = field(default_factory=dict)  # what makes it of the sweep's own experiment

    @cached_property
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
        """The trial of one point of the grid. Raises InputError for a key or value that is not allowed."""
        # What the file asks of `train`, a sweep asks of the arms that say so; what a solved head cannot do is left out.
        given = {"model.head": "paper"} | (NO_STEPS if self.arm.is_solved else {})
        overrides = {**given, **pairing(self.seed), **self.condition, **self.arm.overrides, **point}
        return TrialSpec(self.arm.name, self.label, experiment.override(overrides), overrides)

    @property
    def label(self) -> str:
        """The condition's values as canonical text."""
        return ",".join(f"{key}={value}" for key, value in self.condition.items())

    @property
    def name(self) -> GroupName:
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
    problem = _problem(space)
    if problem:
        raise InputError(f"space {name_or_file} {problem}")
    try:
        space_from_json(space_as_json(space))  # as the report reads it, when all is trained
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"space {name_or_file}: {where} is {first['input']!r:.60}; {first['msg']}") from None
    return space


def _problem(space: Space) -> str:
    """What keeps a space from being swept and reported, as the end of a sentence; "" where nothing does."""
    names = [arm.name for arm in space.arms]
    known = f"which is not among its arms {listing(names) or '(it has none)'}"
    for role, name in (("baseline", space.baseline), ("headline", space.headline)):
        if name not in names:
            return f"names {role} '{name}', {known}"
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        return f"has two arms named '{twice}'; give each a name of its own"
    if not space.seeds:
        return "has no seeds; give at least one"
    roles = get_args(Plain) + get_args(Alternative) + get_args(Control)
    for arm in space.arms:
        if arm.role not in roles:
            return f"gives arm {arm.name} role '{arm.role}'{nearest(arm.role, roles)}; roles are {listing(roles[1:])}"
        for setting, name in (("controls", arm.controls), ("facts.against", arm.facts.against)):
            if name and name not in names:
                return f"names '{name}' as {setting} of arm {arm.name}, {known}{nearest(name, names)}"
    if isinstance(space.needs, str):
        return f"has needs={space.needs!r}; give a tuple of arms: needs=({space.needs!r},)"
    controls = [arm.name for arm in space.controls]
    missing = next((name for name in space.needs or () if name not in controls), None)
    if missing is not None:
        return (
            f"needs '{missing}', which is no control of {space.headline}{nearest(missing, controls)}; give that arm "
            f'a role, Arm(..., role="control", controls="{space.headline}"), or leave it out of needs'
        )
    return ""


def groups_of(space: Space) -> list[Group]:
    """Every (arm, condition, seed) of a space, the arms of one condition and seed beside one another."""
    return [
        Group(arm, condition, seed)
        for condition, seed, arm in itertools.product(product_of(space.conditions), space.seeds, space.arms)
    ]


def points_per_group(space: Space, max_trials: int | None = None) -> dict[str, int]:
    """How many points of its grid each arm trains in every condition and seed: the same number in every arm.

    Raises:
        InputError: a key has no values, an arm has nothing to search while another has, or `max_trials` does not leave
            one point each.
    """
    sizes = {arm.name: len(product_of(space.grid_of(arm))) for arm in space.arms if not arm.is_solved}
    solved = {arm.name: len(product_of(arm.grid)) for arm in space.arms if arm.is_solved}
    conditions = product_of(space.conditions)
    if not conditions or not all({**sizes, **solved}.values()):
        raise InputError("the space is empty: a key has no values; give each key at least one")
    if space.equal_budget and sizes and min(sizes.values()) == 1 < max(sizes.values()):
        alone = min(sizes, key=lambda name: sizes[name])
        widest = max(sizes, key=lambda name: sizes[name])
        raise InputError(
            f"arm {alone} of the space has nothing to search, while arm {widest} has {sizes[widest]} points: the best "
            f"of many against one is no fair comparison; give {alone} a grid too (optim.lr), or say "
            "Space(equal_budget=False), and no gain will be claimed"
        )
    if max_trials is not None:
        groups = len(conditions) * len(space.seeds)  # of each arm
        least = groups * (len(sizes) + sum(solved.values()))
        if max_trials < least:
            raise InputError(
                f"--trials is {max_trials}; this space needs at least {least} (one for every arm, condition and seed)"
            )
        left = (max_trials - groups * sum(solved.values())) // (groups * max(1, len(sizes)))
        sizes = {name: min(size, left) for name, size in sizes.items()}
    return {**(dict.fromkeys(sizes, min(sizes.values(), default=0)) if space.equal_budget else sizes), **solved}


def trials_of(space: Space, experiment: Experiment, *, max_trials: int | None = None) -> list[TrialSpec]:
    """The trials of a space, each through the experiment's own validation.

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
    """So many points of a grid: all of them in order, or as many drawn at random (for a group: its own draw)."""
    grid = product_of(axes)
    # Seeded by text and not by hash(): the same draw in every process, so that a resumed sweep finds its trials.
    stream = "" if group is None else f"{group.label} {group.seed}"
    return grid if len(grid) <= count else random.Random(stream).sample(grid, count)


def check_effect(space: Space, experiment: Experiment) -> None:
    """Refuse a space with a key, or an arm, that changes nothing of what is trained.

    A sweep reads the store once: keys that change encoders or paths would change nothing in its trials, and so would
    the weight of a corpus that is not there, or a learning rate where nothing is trained.
    """
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


def trained_settings(experiment: Experiment) -> dict[str, Any]:
    """The settings that enter training, with defaults written out and what is switched off left out."""
    settings = {key: value for key, value in deciding(experiment, "model").items() if not key.startswith("mixing.")}
    active = experiment.active_auxiliaries
    if "model.trained_auxiliaries" in settings:
        trained = experiment.model.trained_auxiliaries
        settings["model.trained_auxiliaries"] = [name for name in trained if name in active]
    settings["mixing.loss_weight"] = {name: experiment.loss_weight_setting(name) for name in active}
    settings["mixing.batch_ratio"] = {name: experiment.batch_ratio(name) for name in active}
    # With one corpus in a step, jointly and in turn are the same.
    settings["mixing.schedule"] = experiment.mixing.schedule if active else None
    settings["mixing.warm_start"] = _warm_start(experiment, active)
    if experiment.num_steps:
        return settings
    if experiment.model.head == "prior":
        settings["corpora of the prior"] = list(active)
    return {"train.max_steps": 0, **{key: each for key, each in settings.items() if not key.startswith(UNTRAINED)}}


def _warm_start(experiment: Experiment, active: Sequence[str]) -> dict[str, Any] | None:
    """Who warms up (None: nobody, the target waits) for how long, where that changes what is trained."""
    warm_start = experiment.mixing.warm_start
    if not warm_start.steps or (warm_start.corpus == experiment.target and not active):
        return None
    takes_part = warm_start.corpus in (experiment.target, *active)
    return {"corpus": warm_start.corpus if takes_part else None, "steps": warm_start.steps}


def refuse_what_changes_nothing(what: str, tried: Sequence[Sequence[Experiment]]) -> None:
    """Refuse a key whose values train the same model in every arm.

    Args:
        what: the key or arms, for the message.
        tried: for each arm, the experiments that differ in this key alone.

    Raises:
        InputError: in no arm do two of them differ in what is trained.
    """
    trained = [[trained_settings(experiment) for experiment in experiments] for experiments in tried]
    if any(len(settings) > 1 for settings in trained) and not any(
        any(other != settings[0] for other in settings[1:]) for settings in trained
    ):
        raise InputError(
            f"{what}: nothing that is trained changes, so the space compares a model with itself; leave it out, or "
            "check that the experiment uses what is changed (corpora, their loss weights; a sweep embeds nothing anew)"
        )


def product_of(axes: Mapping[str, Grid]) -> list[dict[str, Any]]:
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def spaces_in(folder: Path) -> list[str]:
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
    """The paired seeds of a sweep: tune.seeds of them."""
    return counted_seeds(experiment, experiment.tune.seeds)


def counted_seeds(experiment: Experiment, count: int) -> tuple[int, ...]:
    """So many seeds, counted from the experiment's own."""
    return tuple(experiment.seed + index for index in range(count))


def pairing(seed: int) -> dict[str, Any]:
    """What all that is compared at a seed has in common: start and batches, splits and few-shot subset."""
    return {"seed": seed, "data.split_seed": seed}


def shots_conditions(experiment: Experiment) -> dict[str, tuple[Any, ...]]:
    """The shots an experiment wants compared: tune.shots, else data.shots alone."""
    return {"data.shots": experiment.tune.shots or (experiment.data.shots,)}


def lr_grid(experiment: Experiment) -> dict[str, tuple[Any, ...]]:
    """The learning rates an experiment wants searched in every arm, or no axis."""
    return {"optim.lr": experiment.tune.lr} if experiment.tune.lr else {}


def related_auxiliaries(experiment: Experiment) -> tuple[str, ...]:
    """The auxiliary corpora that are no unrelated controls. Raises InputError if there are none."""
    names = tuple(name for name in experiment.auxiliaries if experiment.corpora[name].control != "unrelated")
    if not names:
        raise InputError(
            f"experiment {experiment.name} has no auxiliary corpus beside its target '{experiment.target}', "
            "so there is nothing to mix; add one under corpora"
        )
    return names
