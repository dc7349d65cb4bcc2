"""Which arm's model to ship: chosen on validation, of all that a user could use.

In: a space, and validation accuracies of its arms by seed. Out: the arm to ship, and those that it is compared with.
Test has no say in it: what the choice is worth is measured there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import get_args

from uml_core.evaluation.statistics import paired_difference
from uml_core.sweeps.space import Alternative, Arm, Space

MIN_SEEDS = 3  # of two, a 95 % interval reaches 9 standard deviations to each side: nothing would ever be decided
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Choice:
    """The arm to ship under one condition, the second best, and the best with and without unpaired data."""

    arm: Arm
    second: Arm
    alone: Arm
    unpaired: Arm

    @property
    def ships_unpaired(self) -> bool:
        """Whether the shipped model owes something to unpaired data."""
        return self.arm is self.unpaired


def choose(space: Space, val: Mapping[str, Mapping[int, float]]) -> Choice | None:
    """The arm to ship: the best on validation with unpaired data where it is reliably above the best without.

    Where validation cannot tell the two apart, the one that needs no unpaired data is shipped.

    Args:
        space: says of each arm whether one could use it, and whether it owes something to unpaired data.
        val: accuracy in [0, 1] by arm and seed.

    Returns:
        None where an alternative was not measured (`lacking_alternatives`), or nothing with unpaired data was, or
        arms have no seed in common.
    """
    measured = [arm for arm in space.shippable if val.get(arm.name)]
    alone = _by_accuracy([arm for arm in measured if not arm.uses_unpaired], val)
    unpaired = _by_accuracy([arm for arm in measured if arm.uses_unpaired], val)
    in_common = set.intersection(*(set(val[arm.name]) for arm in measured)) if measured else set()
    if lacking_alternatives(measured) or not unpaired or not in_common:
        return None
    above = paired_difference(val[unpaired[0].name], val[alone[0].name])
    is_reliable = above.count >= MIN_SEEDS and above.mean > 0 and above.p_value < SIGNIFICANCE
    arm = unpaired[0] if is_reliable else alone[0]
    others = [other for other in measured if other is not arm]
    return Choice(arm, _by_accuracy(others, val)[0], alone[0], unpaired[0])


def lacking_alternatives(measured: Iterable[Arm]) -> list[str]:
    """The alternatives to training on unpaired data that are not among some arms, by role."""
    roles = {arm.role for arm in measured}
    return [role for role in get_args(Alternative) if role not in roles]


def _by_accuracy(arms: Sequence[Arm], val: Mapping[str, Mapping[int, float]]) -> list[Arm]:
    """Best first; of equals, the one that the space names first."""
    return sorted(arms, key=lambda arm: -mean(val[arm.name].values()))
