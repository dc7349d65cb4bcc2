"""The whole check of the theory: its independent tasks, and what they come to together.

results = run_study(Request(trials=2000, steps=500))     # pipelines.theory runs the tasks on Ray
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from uml_core.evaluation.statistics import PairedDifference, Spread, paired_difference, spread
from uml_core.theory.gaussian_study import ARMS, Arm, Curve, WorldFacts, train_arm, world_facts
from uml_core.theory.request import Request
from uml_core.theory.simulation import SimulatedModel, simulate_models
from uml_core.theory.statements import STATEMENTS, Finding, find

Task = Callable[[], Any]


@dataclass(frozen=True)
class ArmSummary:
    """Validation error on X of one arm over seeds, at the early and the last step; differences to X, paired by seed."""

    arm: Arm
    early: Spread
    early_difference: PairedDifference
    late: Spread
    late_difference: PairedDifference


@dataclass(frozen=True)
class TheoryResults:
    """What the page shows."""

    request: Request
    findings: Sequence[Finding]
    models: Sequence[SimulatedModel]
    worlds: Sequence[WorldFacts]
    curves: Sequence[Curve]
    arms: Sequence[ArmSummary]


def run_here(tasks: Sequence[Task]) -> Iterable[Any]:
    return [task() for task in tasks]


def run_study(request: Request, run: Callable[[Sequence[Task]], Iterable[Any]] = run_here) -> TheoryResults:
    """Do all there is to do; `run` calls the tasks and gives their results in the order of the tasks."""
    tasks: list[Task] = [partial(find, statement, request.seed, request.cases) for statement in STATEMENTS]
    tasks.append(partial(simulate_models, request.trials, request.seed))
    tasks += [partial(train_arm, arm, seed, request.steps) for arm in ARMS for seed in request.seeds]
    found = list(run(tasks))
    findings, models, curves = found[: len(STATEMENTS)], found[len(STATEMENTS)], found[len(STATEMENTS) + 1 :]
    worlds = [world_facts(seed) for seed in request.seeds]
    return TheoryResults(request, findings, models, worlds, curves, [_summary(arm, curves, request) for arm in ARMS])


def _summary(arm: Arm, curves: Sequence[Curve], request: Request) -> ArmSummary:
    def at(step: int) -> tuple[Spread, PairedDifference]:
        own, baseline = (
            {curve.seed: curve.errors[step] for curve in curves if curve.arm == name} for name in (arm.name, "X")
        )
        return spread([*own.values()]), paired_difference(own, baseline)

    return ArmSummary(arm, *at(request.early_step), *at(request.steps))


def as_json(results: Any) -> Any:
    """Dataclasses as plain JSON values: "Infinity" and "NaN" as text, for JSON has no such numbers."""
    return json.loads(json.dumps(results, default=vars), parse_constant=str)
