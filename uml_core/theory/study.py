"""The whole check of the theory as independent tasks, and what they come to together.

In: number of trials, seed, steps of the autoencoder. Out of `plan`: tasks, the longest first, each a function and its
arguments; out of `collect`: `TheoryResults`, whatever order the tasks ended in.

    results = collect(request, [task.run() for task in plan(request)])     # pipelines.theory runs them on Ray
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from uml_core.evaluation.statistics import PairedDifference, Spread, paired_difference, spread
from uml_core.theory.autoencoder import (
    ARMS,
    EARLY_STEP,
    NUM_STEPS,
    Arm,
    Curve,
    LinearFloors,
    linear_floors,
    train_arm,
)
from uml_core.theory.examples import DRAWS, Finding, Survey, findings, survey
from uml_core.theory.exchange import ExchangeResult, exchange_of
from uml_core.theory.monte_carlo import (
    SWEEP_RATIOS,
    Agreement,
    CaseResult,
    NoiseSweepPoint,
    agreement,
    case_grid,
    noise_sweep_point,
    run_case,
)

NUM_TRIALS, NUM_SEEDS, SURVEY_CASES, SIGMA_X = 20_000, 3, 1_000, 0.1
CASES_PER_TASK = 6  # a case takes a tenth of a second: several a task
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Request:
    """What to run: Monte-Carlo trials a case, the first seed, steps of each autoencoder, random cases a statement."""

    trials: int = NUM_TRIALS
    seed: int = 0
    num_steps: int = NUM_STEPS
    survey_cases: int = SURVEY_CASES

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the autoencoder study and of the exchange rate."""
        return tuple(range(self.seed, self.seed + NUM_SEEDS))


@dataclass(frozen=True)
class Task:
    """A function with its arguments that returns a list of results; `cost` orders tasks, the longest first."""

    words: str
    work: Callable[..., list[Any]]
    arguments: tuple[Any, ...]
    cost: float

    def run(self) -> list[Any]:
        """Do the work here."""
        return self.work(*self.arguments)


@dataclass(frozen=True)
class ArmSummary:
    """One arm of the autoencoder study over seeds: validation error on X, and its difference to arm X, paired by seed.

    Attributes:
        early: at step `EARLY_STEP` (the last one, if there are fewer).
        late: at the last step.
        best: the least along the curve.
        settled: relative change of the mean error over the last quarter of the steps.
        steps_per_s: of one task on one core, while the other tasks ran beside it.
    """

    arm: Arm
    early: Spread
    late: Spread
    best: Spread
    early_difference: PairedDifference
    late_difference: PairedDifference
    settled: float
    steps_per_s: float


@dataclass(frozen=True)
class TheoryResults:
    """Everything the page shows."""

    request: Request
    findings: tuple[Finding, ...]
    surveys: tuple[Survey, ...]
    cases: tuple[CaseResult, ...]
    agreement: Agreement
    noise_sweep: tuple[NoiseSweepPoint, ...]
    exchange: tuple[ExchangeResult, ...]
    floors: tuple[LinearFloors, ...]
    curves: tuple[Curve, ...]
    arms: tuple[ArmSummary, ...]

    @property
    def early_step(self) -> int:
        """The step at which arms are compared early."""
        return min(EARLY_STEP, self.request.num_steps)


def plan(request: Request) -> list[Task]:
    """Return every task, the longest first, so that the last to end is a short one."""
    cases = case_grid(request.seed)
    tasks = [
        Task(f"autoencoder {arm.name}", _train, (arm, seed, request.num_steps), _training_cost(arm, request.num_steps))
        for arm in ARMS
        for seed in request.seeds
    ]
    tasks += [
        Task("Monte Carlo", _cases, (tuple(some), request.trials), cost=request.trials / 1e4)
        for some in _batches(cases, CASES_PER_TASK)
    ]
    tasks += [Task(f"survey {name}", _survey, (name, request.seed, request.survey_cases), 1.0) for name in DRAWS]
    tasks.append(Task("noise sweep", _noise_sweep, (request.trials, request.seed), 0.5))
    tasks.append(Task("exchange rate", _closed_forms, (request.seeds,), 0.1))
    return sorted(tasks, key=lambda task: -task.cost)


def collect(request: Request, results: Iterable[Any]) -> TheoryResults:
    """Return the results of all tasks, put in order."""
    found = list(results)
    cases = sorted(_of(CaseResult, found), key=lambda result: result.case.seed)
    order = list(DRAWS)
    curves = sorted(_of(Curve, found), key=lambda curve: ([arm.name for arm in ARMS].index(curve.arm), curve.seed))
    return TheoryResults(
        request,
        findings(),
        tuple(sorted(_of(Survey, found), key=lambda result: order.index(result.name))),
        tuple(cases),
        agreement(cases),
        tuple(sorted(_of(NoiseSweepPoint, found), key=lambda point: point.sigma_y)),
        tuple(sorted(_of(ExchangeResult, found), key=lambda result: result.seed)),
        tuple(sorted(_of(LinearFloors, found), key=lambda result: result.seed)),
        tuple(curves),
        tuple(_summary(arm, curves, request) for arm in ARMS),
    )


def as_json(value: Any) -> Any:
    """Return dataclasses as plain JSON values: "inf" for infinity, null for NaN, which JSON cannot write."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value


def _summary(arm: Arm, curves: list[Curve], request: Request) -> ArmSummary:
    early, last = min(EARLY_STEP, request.num_steps), request.num_steps
    own = [curve for curve in curves if curve.arm == arm.name]
    baseline = [curve for curve in curves if curve.arm == ARMS[0].name]
    before = max((step for step in own[0].steps if step <= 0.75 * last), default=last)

    def difference(step: int) -> PairedDifference:
        return paired_difference(
            {curve.seed: curve.at(step) for curve in own}, {curve.seed: curve.at(step) for curve in baseline}
        )

    return ArmSummary(
        arm,
        spread([curve.at(early) for curve in own]),
        spread([curve.at(last) for curve in own]),
        spread([min(curve.validation_error) for curve in own]),
        difference(early),
        difference(last),
        _mean_at(own, last) / _mean_at(own, before) - 1,
        sum(curve.steps_per_s for curve in own) / len(own),
    )


def _batches(items: list[Kind], size: int) -> list[list[Kind]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _mean_at(curves: list[Curve], step: int) -> float:
    return spread([curve.at(step) for curve in curves]).mean


def _of(kind: type[Kind], results: Iterable[Any]) -> list[Kind]:
    return [result for result in results if isinstance(result, kind)]


def _training_cost(arm: Arm, num_steps: int) -> float:
    return num_steps * arm.batch_size * (2 if arm.second else 1)


def _train(arm: Arm, seed: int, num_steps: int) -> list[Curve]:
    return [train_arm(arm, seed, num_steps)]


def _cases(cases: tuple[Any, ...], trials: int) -> list[CaseResult]:
    return [run_case(case, trials) for case in cases]


def _survey(name: str, seed: int, count: int) -> list[Survey]:
    return [survey(name, seed=seed, count=count)]


def _noise_sweep(trials: int, seed: int) -> list[NoiseSweepPoint]:
    return [
        noise_sweep_point(SIGMA_X * ratio, trials, seed=100 * seed + place) for place, ratio in enumerate(SWEEP_RATIOS)
    ]


def _closed_forms(seeds: tuple[int, ...]) -> list[Any]:
    return [result for seed in seeds for result in (exchange_of(seed), linear_floors(seed))]
