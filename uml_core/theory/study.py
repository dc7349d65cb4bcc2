"""The whole check of the theory as independent tasks, and what they come to together.

In: number of trials, seed, steps of the autoencoder. Out of `plan`: tasks, the longest first, each a function and its
arguments; out of `collect`: `TheoryResults`, whatever order the tasks ended in.

    results = collect(request, [task.run() for task in plan(request)])     # pipelines.theory runs them on Ray
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uml_core.evaluation.statistics import PairedDifference, Spread, paired_difference, spread
from uml_core.theory.examples import DRAWS, Finding, Survey, findings, survey
from uml_core.theory.gaussian_study import (
    ARMS,
    EARLY_STEP,
    NUM_STEPS,
    Arm,
    Curve,
    ExchangeResult,
    LinearFloors,
    exchange_of,
    linear_floors,
    train_arm,
)
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
    """Calls of one function that are done in one go; `cost` orders tasks, the longest first."""

    words: str
    work: Callable[..., Any]
    calls: tuple[tuple[Any, ...], ...]
    cost: float

    def run(self) -> list[Any]:
        return [self.work(*arguments) for arguments in self.calls]


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
    """What the page shows."""

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
    """Every task, the longest first, so that the last to end is a short one."""
    trials, steps, seed = request.trials, request.num_steps, request.seed
    cases = [(case, trials) for case in case_grid(seed)]
    points = [(SIGMA_X * ratio, trials, 100 * seed + index) for index, ratio in enumerate(SWEEP_RATIOS)]
    seeds = tuple((each,) for each in request.seeds)
    tasks = [
        Task(
            f"autoencoder {arm.name}", train_arm, ((arm, each, steps),), steps * arm.batch_size * (1 + bool(arm.second))
        )
        for arm in ARMS
        for each in request.seeds
    ]
    tasks += [
        Task("Monte Carlo", run_case, tuple(cases[start : start + CASES_PER_TASK]), cost=trials / 1e4)
        for start in range(0, len(cases), CASES_PER_TASK)
    ]
    tasks += [Task(f"survey {name}", survey, ((name, seed, request.survey_cases),), 1.0) for name in DRAWS]
    tasks.append(Task("noise sweep", noise_sweep_point, tuple(points), 0.5))
    tasks += [Task(work.__name__, work, seeds, 0.1) for work in (exchange_of, linear_floors)]
    return sorted(tasks, key=lambda task: -task.cost)


def collect(request: Request, results: Iterable[Any]) -> TheoryResults:
    found = list(results)
    arms, statements = [arm.name for arm in ARMS], list(DRAWS)

    def ordered(kind: type, key: Callable[[Any], Any]) -> tuple[Any, ...]:
        return tuple(sorted((result for result in found if isinstance(result, kind)), key=key))

    cases = ordered(CaseResult, lambda result: result.case.seed)
    curves = ordered(Curve, lambda curve: (arms.index(curve.arm), curve.seed))
    return TheoryResults(
        request,
        findings(),
        ordered(Survey, lambda result: statements.index(result.name)),
        cases,
        agreement(cases),
        ordered(NoiseSweepPoint, lambda point: point.sigma_y),
        ordered(ExchangeResult, lambda result: result.seed),
        ordered(LinearFloors, lambda result: result.seed),
        curves,
        tuple(_summary(arm, curves, request) for arm in ARMS),
    )


def as_json(value: Any) -> Any:
    """Dataclasses as plain JSON values: "inf" for infinity, null for NaN, which JSON cannot write."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value


def _summary(arm: Arm, curves: Sequence[Curve], request: Request) -> ArmSummary:
    early, last = min(EARLY_STEP, request.num_steps), request.num_steps
    own = {curve.seed: curve for curve in curves if curve.arm == arm.name}
    baseline = {curve.seed: curve for curve in curves if curve.arm == ARMS[0].name}
    before = max((step for step in own[request.seed].steps if step <= 0.75 * last), default=last)

    def errors(step: int, of: Mapping[int, Curve] = own) -> dict[int, float]:
        return {seed: curve.at(step) for seed, curve in of.items()}

    def over_seeds(step: int) -> Spread:
        return spread([*errors(step).values()])

    return ArmSummary(
        arm,
        over_seeds(early),
        over_seeds(last),
        spread([min(curve.validation_error) for curve in own.values()]),
        paired_difference(errors(early), errors(early, baseline)),
        paired_difference(errors(last), errors(last, baseline)),
        over_seeds(last).mean / over_seeds(before).mean - 1,
        sum(curve.steps_per_s for curve in own.values()) / len(own),
    )
