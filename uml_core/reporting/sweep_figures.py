"""A sweep's figures with what is said of them: caption, and the same in words for whoever cannot see them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from uml_core.figures.drawing import ReportFigure, drawn
from uml_core.figures.words import percent, points
from uml_core.reporting import figures
from uml_core.reporting.classes import ClassGain, ClassGains, class_gain_figure
from uml_core.reporting.collect import SweepResults
from uml_core.reporting.mixtures import mixture_grids
from uml_core.reporting.tables import arm_rows, shift_rows


def class_figures(sweep: SweepResults, classes: Sequence[ClassGains]) -> Iterator[ReportFigure]:
    """Draw single classes under the first and the last condition: where data is scarcest, and where there is most."""
    for gains in classes if len(classes) < 3 else (classes[0], classes[-1]):
        where = gains.condition.words
        yield drawn(
            f"{_slug(sweep.name)}_classes_{'all' if gains.condition.shots is None else gains.condition.shots}",
            class_gain_figure(gains),
            caption=f"{sweep.headline} less {sweep.baseline} {where}, class by class: mean over seeds and 95 % "
            "interval of each class alone.",
            alternative=f"Dot plot of the gain of single classes {where}: {gains.num_up} of {len(gains.classes)} rise, "
            f"{gains.num_down} fall; largest {_gain(gains.classes[0])}, smallest {_gain(gains.classes[-1])}.",
        )


def _gain(gain: ClassGain) -> str:
    return f"{gain.label} {points(gain.difference.mean)} points"


def _slug(space: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", space).strip("-")[:60] or "sweep"


def sweep_figures(sweep: SweepResults) -> Iterator[ReportFigure]:
    """Draw what a sweep has: accuracy against shots and per arm, gains over mixtures, shifted test sets."""
    space = _slug(sweep.name)
    target = sweep.target or "the target"
    drawings = (
        (
            "accuracy_against_shots",
            figures.accuracy_against_shots,
            f"Mean test accuracy on {target} against training samples per class; lines up and down are 95 % "
            "intervals over seeds.",
        ),
        (
            "accuracy_per_arm",
            figures.accuracy_per_arm,
            f"Test accuracy on {target} per arm. A dot is a seed; above the dots, the bar is their mean and the "
            "line its 95 % interval. Arms share their seeds, so trust the paired differences in the table over "
            "overlapping lines.",
        ),
        (
            "mixing_heat_map",
            figures.mixing_heat_map,
            f"What arm {sweep.headline} gains over {sweep.baseline} on validation, in percent points and paired by "
            "seed, by how much auxiliary data is mixed in. The framed cell is the best: it was picked for that, so its "
            "gain flatters.",
        ),
        (
            "shifted_accuracy",
            figures.shifted_accuracy,
            f"Mean accuracy on the test set and the shifted test sets of {target}. The shorter the line, the less the "
            "shift costs.",
        ),
    )
    for name, draw, caption in drawings:
        figure = draw(sweep)
        if figure is not None:
            yield drawn(f"{space}_{name}", figure, caption=caption, alternative=_alternative(name, sweep))


def _alternative(name: str, sweep: SweepResults) -> str:
    """Say in words what the figure shows, with its numbers."""
    if name == "mixing_heat_map":
        parts = [
            f"{' '.join(filter(None, [grid.corpus, grid.condition.words]))}: best {points(grid.gain[grid.best])} "
            f"points at loss weight {grid.loss_weights[grid.best[0]]:g} and batch ratio "
            f"{grid.batch_ratios[grid.best[1]]:g}, worst {points(float(np.nanmin(grid.gain)))} points"
            for grid in mixture_grids(sweep)
        ]
        return f"Heat map of the gain on validation over {sweep.baseline}. {'; '.join(parts)}."
    if name == "shifted_accuracy":
        parts = [
            f"{row.arm} {row.condition.words} on {row.split} {percent(row.shifted.mean)} %" for row in shift_rows(sweep)
        ]
        return f"Dot plot of test against shifted test accuracy. Means: {'; '.join(parts)}."
    parts = [f"{row.arm} {row.condition.words} {percent(row.test.mean)} %" for row in arm_rows(sweep) if row.test]
    kind = (
        "Line chart of test accuracy against shots" if name == "accuracy_against_shots" else "Dot plot of test accuracy"
    )
    return f"{kind}. Means: {'; '.join(parts)}."
