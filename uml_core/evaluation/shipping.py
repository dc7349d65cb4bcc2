"""Which arm's model to ship: chosen on validation, of all that a user could use.

In: a space, and validation accuracies of its arms by seed. Out: the arm to ship, and those that it is compared with.
Test has no say in it: what the choice is worth is measured there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import get_args

from uml_core.evaluation.statistics import paired_difference
from uml_core.sweeps.space import Alternative, Arm, Space

MIN_SEEDS = 3  # of two, a 95 % interval reaches 9 standard deviations to each side: nothing would ever be decided


@dataclass(frozen=True)
class Choice:
    """The arm to ship under one condition, the second best, and the best without and with unpaired data, if any."""

    arm: Arm
    second: Arm
    alone: Arm
    unpaired: Arm | None

    @property
    def ships_unpaired(self) -> bool:
        """Whether the shipped model owes something to unpaired data."""
        return self.arm is self.unpaired


def choose(space: Space, val: Mapping[str, Mapping[int, float]], *, unseen: bool) -> Choice | None:
    """The arm to ship: the best on validation, where that flatters no arm.

    Heads in closed form choose nothing by validation, and the best of those that know the target alone is taken by its
    mean. Such a head that needs other corpora too must be above it by more than one standard error of the paired
    difference over seeds (Breiman's rule: what validation cannot tell apart is decided for the simpler model). Arms of
    which validation chose a step, a rate or a penalty look better there than they are, and must be above it reliably
    (p < .05): by one standard error, two of four sweeps on data of our own shipped one that stood 1.3 ± 2.7 and
    3.8 ± 3.2 points below the best head in closed form on test.

    Args:
        space: says of each arm whether one could use it, and whether it owes something to unpaired data.
        val: accuracy in [0, 1] by arm and seed.
        unseen: some class has no train row. Validation has none of it either, so that heads which never answer it look
            best there; only those in closed form that know all classes set their offset by held-out classes.

    Returns:
        None where an alternative was not measured (`lacking_alternatives`), or nothing with unpaired data was though
        the space has such arms, or arms have fewer than three seeds in common.
    """
    measured = [arm for arm in space.shippable if len(val.get(arm.name, {})) >= MIN_SEEDS]
    in_common = set.intersection(*(set(val[arm.name]) for arm in measured)) if measured else set()
    val = {arm.name: {seed: val[arm.name][seed] for seed in in_common} for arm in measured}
    alone = [arm for arm in measured if not arm.uses_unpaired]
    unpaired = [arm for arm in measured if arm.uses_unpaired]
    lacks = len(measured) < 2 if space.is_target_alone else not unpaired or lacking_alternatives(measured)
    if lacks or len(in_common) < MIN_SEEDS:
        return None
    answers_all = [arm for arm in unpaired if arm.is_solved] if unseen else []
    arm = _best(answers_all or measured, val)
    second = _best([other for other in measured if other is not arm], val)
    if arm.uses_unpaired:
        return Choice(arm, second, _best(alone, val), arm)
    return Choice(arm, second, arm, _best(unpaired, val) if unpaired else None)


def alias_of(shots: int | None) -> str:
    """What the model of a number of shots is called in MLflow's registry, beside `best` of the most."""
    return "all-shots" if shots is None else f"{shots}-shots"


def lacking_alternatives(measured: Iterable[Arm]) -> list[str]:
    """The alternatives to training on unpaired data that are not among some arms, by role.

    Few have a pile; the probe, which takes steps, is none to heads that take none.
    """
    arms = list(measured)
    spared = {"pile", "probe"} if all(arm.takes_no_step for arm in arms) else {"pile"}
    roles = spared | {arm.role for arm in arms}
    return [role for role in get_args(Alternative) if role not in roles]


def _best(arms: Sequence[Arm], val: Mapping[str, Mapping[int, float]]) -> Arm:
    """By steps from the simplest kind of arm to the least simple; of equals, the one that the space names first."""

    def simplicity(arm: Arm) -> tuple[bool, bool]:
        return arm.uses_validation, arm.uses_unpaired

    found: Arm | None = None
    for _, kind in itertools.groupby(sorted(arms, key=simplicity), simplicity):
        best = max(kind, key=lambda arm: mean(val[arm.name].values()))
        if found is None or _is_above(val[best.name], val[found.name], is_flattered=best.uses_validation):
            found = best
    assert found is not None
    return found


def _is_above(ours: Mapping[int, float], theirs: Mapping[int, float], *, is_flattered: bool) -> bool:
    """Whether by more than one standard error over seeds; where validation has flattered ours, reliably."""
    above = paired_difference(ours, theirs)
    return above.is_above if is_flattered else above.mean > above.std / math.sqrt(above.count)
