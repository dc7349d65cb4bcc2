"""Gains of single classes: which classes the auxiliary data helps, and which it costs.

In: the selected trials of baseline and headline, which log their recall of every class. Out: paired differences. A
class has few test rows, so one of them alone says little; the correction is over all classes of a condition.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from uml_core.evaluation.statistics import PairedDifference, holm, paired_difference
from uml_core.figures.drawing import BLUE, GREY, VERMILION, house_style, printable, stacked_panels
from uml_core.reporting.collect import Condition, SweepResults, condition_of
from uml_core.tracking.records import CLASS_METRIC

MAX_SHOWN = 24  # classes of a condition: the largest gains and the largest losses


@dataclass(frozen=True)
class ClassGain:
    """One class: mean recall of both arms, and the paired difference of their seeds."""

    label: str
    baseline: float
    headline: float
    difference: PairedDifference
    adjusted_p: float


@dataclass(frozen=True)
class ClassGains:
    """All classes of one condition, the largest gain first."""

    condition: Condition
    classes: tuple[ClassGain, ...]

    @property
    def shown(self) -> tuple[ClassGain, ...]:
        """The ends of the list: as many classes as a page bears."""
        half = MAX_SHOWN // 2
        return self.classes if len(self.classes) <= MAX_SHOWN else (*self.classes[:half], *self.classes[-half:])

    @property
    def num_up(self) -> int:
        """Classes whose mean rose."""
        return sum(gain.difference.mean > 0 for gain in self.classes)

    @property
    def num_down(self) -> int:
        """Classes whose mean fell."""
        return sum(gain.difference.mean < 0 for gain in self.classes)

    @property
    def num_reliable(self) -> int:
        """Classes that differ after Holm's correction."""
        return sum(gain.adjusted_p < 0.05 for gain in self.classes)


def class_gains(sweep: SweepResults) -> list[ClassGains]:
    """Return the gains of single classes under every condition where both arms logged them."""
    found = []
    for condition in sweep.conditions:
        baseline, headline = (_recalls(sweep, arm, condition) for arm in (sweep.baseline, sweep.headline))
        differences = {
            label: paired_difference(headline[label], baseline[label])
            for label in headline
            if set(headline[label]) & set(baseline.get(label, {}))
        }
        adjusted = holm({label: difference.p_value for label, difference in differences.items()})
        gains = [
            ClassGain(
                label,
                float(np.mean(list(baseline[label].values()))),
                float(np.mean(list(headline[label].values()))),
                difference,
                adjusted[label],
            )
            for label, difference in differences.items()
        ]
        if gains:
            ordered = sorted(gains, key=lambda gain: (-gain.difference.mean, gain.label))
            found.append(ClassGains(condition, tuple(ordered)))
    return found


def class_gain_figure(gains: ClassGains) -> Figure:
    """Draw the paired difference of each shown class with its 95 % interval, in percent points."""
    shown = gains.shown
    with house_style():
        figure, (axis,) = stacked_panels([0.24 * len(shown) + 0.8])
        axis.axvline(0, color=GREY, linewidth=1)
        for row, gain in enumerate(shown):
            mean, low, high = (
                100 * value for value in (gain.difference.mean, gain.difference.low, gain.difference.high)
            )
            colour = BLUE if mean > 0 else VERMILION if mean < 0 else GREY
            if not math.isnan(low):
                axis.plot([low, high], [row, row], color=colour, linewidth=1.4, zorder=2)
            axis.plot([mean], [row], marker="o" if mean >= 0 else "D", color=colour, markersize=5, zorder=3)
        axis.set_yticks(range(len(shown)), [printable(gain.label) for gain in shown])
        axis.set_ylim(len(shown) - 0.4, -0.6)
        axis.grid(visible=False, axis="y")
        means = [100 * gain.difference.mean for gain in shown]
        margin = max(10.0, float(np.ptp(means)) / 2)
        low, high = axis.get_xlim()
        axis.set_xlim(max(low, min(means) - margin), min(high, max(means) + margin))
        axis.set_xlabel("difference in test accuracy of the class (%)")
        axis.set_title(gains.condition.words[0].upper() + gains.condition.words[1:])
    return figure


def _recalls(sweep: SweepResults, arm: str, condition: Condition) -> dict[str, dict[int, float]]:
    """Return class -> seed -> recall of an arm's selected trials."""
    found: dict[str, dict[int, float]] = {}
    for trial in sweep.trials:
        if trial.arm == arm and trial.tags.get("uml.selected") == "true" and condition_of(trial) == condition:
            seed = int(trial.params.get("seed", "0"))
            for name, value in trial.metrics.items():
                if name.startswith(CLASS_METRIC):
                    found.setdefault(name.removeprefix(CLASS_METRIC), {})[seed] = value
    return found
