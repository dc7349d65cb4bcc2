"""What `train` trains and what it says: one seed or several, each with its twin, compared in pairs. Light to import.

With `train.seeds` the seeds are those of the sweeps (`uml_core.sweeps.space.pairing`): each draws split, few-shot
subset, start and batches, and its twin the same. The model that is registered is that of the seed that validates best;
test accuracy has no say, and a twin is never registered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pipelines.command_line import Summary
from uml_core.config import Experiment
from uml_core.errors import InputError
from uml_core.sweeps.space import counted_seeds, pairing
from uml_core.tracking.provenance import run_kind

if TYPE_CHECKING:
    from uml_core.evaluation.outcome import RunOutcome
    from uml_core.evaluation.statistics import PairedDifference

CONTROLS = "python -m pipelines.tune EXPERIMENT.yaml --space controls measures it"


@dataclass(frozen=True)
class SeedRuns:
    """The experiment of one seed, and its twin where there is one."""

    experiment: Experiment
    twin: Experiment | None

    @property
    def experiments(self) -> tuple[Experiment, ...]:
        """Both, in the order in which they are trained."""
        return (self.experiment,) if self.twin is None else (self.experiment, self.twin)


@dataclass(frozen=True)
class SeedOutcomes:
    """What the runs of one seed have come to."""

    runs: SeedRuns
    outcome: RunOutcome
    twin: RunOutcome | None

    @property
    def seed(self) -> int:
        """The experiment's."""
        return self.runs.experiment.seed

    @property
    def difference_points(self) -> float | None:
        """Test accuracy above the twin's, in points; None without a twin, or without a test split."""
        if self.twin is None or self.outcome.test_accuracy is None or self.twin.test_accuracy is None:
            return None
        return 100 * (self.outcome.test_accuracy - self.twin.test_accuracy)

    def as_json(self) -> dict[str, Any]:
        """Return both outcomes as JSON values."""
        return {**self.outcome.as_json(), **({} if self.twin is None else {"twin": self.twin.as_json()})}


def seed_runs(experiment: Experiment) -> list[SeedRuns]:
    """Return what is trained: the experiment as it is, or with train.seeds once for each seed.

    Raises:
        InputError: train.twin where the run is its own twin.
    """
    if experiment.train.twin and run_kind(experiment) != "uml":
        raise InputError(
            "train.twin is true, and no auxiliary corpus takes part, so the twin would be the run itself; give one a "
            "mixing.loss_weight and mixing.batch_ratio above 0, or remove train.twin"
        )
    found = [experiment]
    if experiment.train.seeds > 1:
        seeds = counted_seeds(experiment, experiment.train.seeds)
        found = [experiment.override({**pairing(seed), "train.seeds": 1}) for seed in seeds]
    return [SeedRuns(each, each.unimodal_twin() if experiment.train.twin else None) for each in found]


def by_seed(runs: Sequence[SeedRuns], outcomes: Sequence[RunOutcome]) -> list[SeedOutcomes]:
    """Return outcomes, in the order of `SeedRuns.experiments`, by seed."""
    left = iter(outcomes)
    return [SeedOutcomes(each, next(left), None if each.twin is None else next(left)) for each in runs]


def best_by_validation(found: Sequence[SeedOutcomes]) -> SeedOutcomes:
    """Return the seed whose model validates best; the first of equals."""
    return max(found, key=lambda each: each.outcome.val_accuracy)


def summary_of(found: Sequence[SeedOutcomes], *, feeds: Mapping[str, str], model: str) -> Summary:
    """Return what the step ends with; `model` is the registered one."""
    return _of_one(found[0], feeds, model) if len(found) == 1 else _of_several(found, feeds, model)


def describe(experiment: Experiment, outcome: RunOutcome) -> str:
    """Return one line on a finished run."""
    return (
        f"{run_kind(experiment):<9} val {100 * outcome.val_accuracy:.1f} %, {_on_test(outcome)}, best at step "
        f"{outcome.best_step} of {outcome.steps}; {outcome.trained_parameters:,} of {outcome.parameters:,} parameters "
        f"trained; {outcome.steps_per_s:.0f} steps/s; MLflow run {outcome.run_id}"
    )


def _on_test(outcome: RunOutcome) -> str:
    return "no test split" if outcome.test_accuracy is None else f"test {100 * outcome.test_accuracy:.1f} %"


def _of_one(found: SeedOutcomes, feeds: Mapping[str, str], model: str) -> Summary:
    lines = [describe(found.runs.experiment, found.outcome)]
    results = {**found.as_json(), "feed": dict(feeds), "model": model}
    if found.runs.twin is not None and found.twin is not None:
        lines.append(describe(found.runs.twin, found.twin))
    if (difference := found.difference_points) is not None:
        results["test_difference_points"] = round(difference, 3)
        lines.append(
            f"difference on test: {difference:+.1f} points with one seed; train.seeds=5 pairs five, "
            f"{CONTROLS} over seeds, with controls"
        )
    return Summary("\n".join([*lines, *_unmatched([found]), f"model: {model}"]), results)


def _of_several(found: Sequence[SeedOutcomes], feeds: Mapping[str, str], model: str) -> Summary:
    best = best_by_validation(found)
    results: dict[str, Any] = {
        "run_id": best.outcome.run_id,
        "model_uri": best.outcome.model_uri,
        "model": model,
        "feed": dict(feeds),
        "seeds": [{"seed": each.seed, **each.as_json()} for each in found],
    }
    lines = [_seed_line(each) for each in found]
    for kind, outcomes in (
        (run_kind(best.runs.experiment), [each.outcome for each in found]),
        ("unimodal", [each.twin for each in found if each.twin is not None]),
    ):
        tested = [outcome.test_accuracy for outcome in outcomes if outcome.test_accuracy is not None]
        if tested:
            lines.append(f"{kind:<9} test {_mean_and_std(tested)} % over {len(tested)} seeds")
    difference = paired(found)
    if difference is not None:
        results["test_difference_points"] = round(100 * difference.mean, 3)
        results["test_difference"] = asdict(difference)  # fractions, as accuracies are
        lines.append(
            f"difference on test: {100 * difference.mean:+.1f} ± {100 * difference.std:.1f} points over "
            f"{difference.count} paired seeds, 95 % interval {100 * difference.low:+.1f} to "
            f"{100 * difference.high:+.1f}; {CONTROLS} with controls"
        )
    registered = f"model: {model}, of seed {best.seed}, which validates best"
    return Summary("\n".join([*lines, *_unmatched(found), registered]), results)


def _unmatched(found: Sequence[SeedOutcomes]) -> list[str]:
    """Return a line on each pair that saw unlike numbers of target samples."""
    return [
        f"not matched: the two of seed {each.seed} saw {each.outcome.target_samples:,} and "
        f"{each.twin.target_samples:,} target samples, as train.patience ended them at different steps; a higher one "
        "lets both go on to train.max_steps"
        for each in found
        if each.twin is not None and each.twin.target_samples != each.outcome.target_samples
    ]


def paired(found: Sequence[SeedOutcomes]) -> PairedDifference | None:
    """Return test accuracy above the twins', paired by seed, as fractions; None where nothing can be paired."""
    from uml_core.evaluation.statistics import paired_difference  # scipy takes a second

    treated = {each.seed: each.outcome.test_accuracy for each in found if each.difference_points is not None}
    baseline = {each.seed: each.twin.test_accuracy for each in found if each.twin is not None}
    if not treated:
        return None
    return paired_difference(_measured(treated), _measured(baseline))


def _measured(values: Mapping[int, float | None]) -> dict[int, float]:
    return {seed: value for seed, value in values.items() if value is not None}


def _mean_and_std(accuracies: Sequence[float]) -> str:
    from uml_core.evaluation.statistics import spread

    found = spread(accuracies)
    return f"{100 * found.mean:.1f} ± {100 * found.std:.1f}"


def _seed_line(found: SeedOutcomes) -> str:
    kind, outcome, twin = run_kind(found.runs.experiment), found.outcome, found.twin
    text = f"seed {found.seed:<4} {kind} val {100 * outcome.val_accuracy:.1f} %, {_on_test(outcome)}"
    if twin is None:
        return f"{text}; MLflow run {outcome.run_id}"
    text = f"{text}; unimodal val {100 * twin.val_accuracy:.1f} %, {_on_test(twin)}"
    if found.difference_points is not None:
        text = f"{text}; difference {found.difference_points:+.1f} points"
    return f"{text}; MLflow runs {outcome.run_id}, {twin.run_id}"
