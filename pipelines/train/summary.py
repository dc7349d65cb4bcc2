"""What `train` trains and what it says: one seed or several, each with its twin, compared in pairs. Light to import.

With `train.seeds` the seeds are those of the sweeps (`uml_core.sweeps.space.pairing`): each draws split, few-shot
subset, start and batches, and its twin the same. The model that is registered is that of the seed that validates best;
test accuracy has no say, and a twin is never registered.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pipelines.command_line import Summary
from uml_core.config import Experiment
from uml_core.errors import InputError
from uml_core.sweeps.space import counted_seeds, pairing
from uml_core.tracking.records import run_kind

if TYPE_CHECKING:
    from uml_core.evaluation.outcome import RunOutcome

CONTROLS = "python -m pipelines.tune EXPERIMENT.yaml --space controls measures it"


@dataclass(frozen=True)
class SeedOutcomes:
    experiment: Experiment
    outcome: RunOutcome
    twin: RunOutcome | None = None

    @property
    def seed(self) -> int:
        return self.experiment.seed

    @property
    def kind(self) -> str:
        return run_kind(self.experiment)

    @property
    def difference_points(self) -> float | None:
        """Test accuracy above the twin's, in points; None without a twin, or without a test split."""
        if self.twin is None or self.outcome.test_accuracy is None or self.twin.test_accuracy is None:
            return None
        return 100 * (self.outcome.test_accuracy - self.twin.test_accuracy)

    def as_json(self) -> dict[str, Any]:
        return {**self.outcome.as_json(), **({} if self.twin is None else {"twin": self.twin.as_json()})}


def seed_runs(experiment: Experiment) -> list[tuple[Experiment, ...]]:
    """The runs of the step, each with its twin behind it: the experiment as it is, or once for each of train.seeds.

    Raises InputError for a train.twin that would be the run itself.
    """
    if experiment.train.twin and run_kind(experiment) != "uml":
        raise InputError(
            "train.twin is true, and no auxiliary corpus takes part, so the twin would be the run itself; give one a "
            "mixing.loss_weight and mixing.batch_ratio above 0, or remove train.twin"
        )
    if experiment.train.twin:  # patience would end the two at different steps
        evaluations = -(-experiment.train.max_steps // experiment.train.eval_every)
        experiment = experiment.override({"train.patience": max(experiment.train.patience, evaluations, 1)})
    found = [experiment]
    if experiment.train.seeds > 1:
        seeds = counted_seeds(experiment, experiment.train.seeds)
        found = [experiment.override({**pairing(seed), "train.seeds": 1}) for seed in seeds]
    return [(each, each.unimodal_twin()) if experiment.train.twin else (each,) for each in found]


def trains_here(experiment: Experiment) -> bool:
    """Whether this process trains, without workers of Ray Train: a head in closed form always does, and under
    train.workers auto what has no encoder to train and no cluster to go to."""
    has_cluster = bool(os.environ.get("RAY_ADDRESS"))  # in a job, too
    is_left_open = experiment.train.workers == "auto" and not has_cluster
    return experiment.model.backbone == "frozen" and (is_left_open or experiment.takes_no_step)


def by_seed(runs: Sequence[tuple[Experiment, ...]], outcomes: Sequence[RunOutcome]) -> list[SeedOutcomes]:
    """Group outcomes, one of each of the runs' experiments in turn, by seed."""
    left = iter(outcomes)
    return [SeedOutcomes(each[0], *itertools.islice(left, len(each))) for each in runs]


def best_by_validation(found: Sequence[SeedOutcomes]) -> SeedOutcomes:
    return max(found, key=lambda each: each.outcome.val_accuracy)


def summary_of(found: Sequence[SeedOutcomes], *, feeds: Mapping[str, str], model: str) -> Summary:
    return _one_seed(found[0], feeds, model) if len(found) == 1 else _several_seeds(found, feeds, model)


def _describe(kind: str, outcome: RunOutcome) -> str:
    selected = f"step {outcome.best_step} of {outcome.steps} by " if outcome.steps else ""
    return (
        f"{kind:<9} val {100 * outcome.val_accuracy:.1f} %, {_on_test(outcome)}, {selected}{outcome.val_rows:,} "
        f"validation rows; {outcome.trained_parameters:,} of {outcome.parameters:,} parameters "
        f"trained; {outcome.steps_per_s:.0f} steps/s; MLflow run {outcome.run_id}"
    )


def _on_test(outcome: RunOutcome) -> str:
    if outcome.test_accuracy is None:
        return "no test split"
    text, groups = f"test {100 * outcome.test_accuracy:.1f} %", outcome.test_groups
    if "unseen_accuracy" in groups:
        seen, unseen = 100 * groups["seen_accuracy"], 100 * groups["unseen_accuracy"]
        text += f" (seen classes {seen:.1f} %, unseen {unseen:.1f} %)"
    return text


def _one_seed(found: SeedOutcomes, feeds: Mapping[str, str], model: str) -> Summary:
    lines = [_describe(found.kind, found.outcome)]
    results = {**found.as_json(), "feed": dict(feeds), "model": model}
    if found.twin is not None:
        lines.append(_describe("unimodal", found.twin))
    if (difference := found.difference_points) is not None:
        results["test_difference_points"] = round(difference, 3)
        lines.append(
            f"difference on test: {difference:+.1f} points with one seed; train.seeds=5 pairs five, "
            f"{CONTROLS} over seeds, with controls"
        )
    return Summary("\n".join([*lines, f"model: {model}"]), results)


def _several_seeds(found: Sequence[SeedOutcomes], feeds: Mapping[str, str], model: str) -> Summary:
    from uml_core.evaluation.statistics import paired_difference, spread  # scipy takes a second

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
        (best.kind, [each.outcome for each in found]),
        ("unimodal", [each.twin for each in found if each.twin is not None]),
    ):
        tested = [outcome.test_accuracy for outcome in outcomes if outcome.test_accuracy is not None]
        if tested:
            over = spread(tested)
            lines.append(f"{kind:<9} test {100 * over.mean:.1f} ± {100 * over.std:.1f} % over {len(tested)} seeds")
    pairs = [each for each in found if each.difference_points is not None]
    if pairs:
        difference = paired_difference(
            {each.seed: each.outcome.test_accuracy for each in pairs},
            {each.seed: each.twin.test_accuracy for each in pairs},
        )
        results["test_difference_points"] = round(100 * difference.mean, 3)
        results["test_difference"] = asdict(difference)  # fractions, as accuracies are
        lines.append(
            f"difference on test: {100 * difference.mean:+.1f} ± {100 * difference.std:.1f} points over "
            f"{difference.count} paired seeds, 95 % interval {100 * difference.low:+.1f} to "
            f"{100 * difference.high:+.1f}; {CONTROLS} with controls"
        )
    registered = f"model: {model}, of seed {best.seed}, which validates best"
    return Summary("\n".join([*lines, registered]), results)


def _seed_line(found: SeedOutcomes) -> str:
    outcome, twin = found.outcome, found.twin
    text = f"seed {found.seed:<4} {found.kind} val {100 * outcome.val_accuracy:.1f} %, {_on_test(outcome)}"
    if twin is None:
        return f"{text}; MLflow run {outcome.run_id}"
    text = f"{text}; unimodal val {100 * twin.val_accuracy:.1f} %, {_on_test(twin)}"
    if found.difference_points is not None:
        text = f"{text}; difference {found.difference_points:+.1f} points"
    return f"{text}; MLflow runs {outcome.run_id}, {twin.run_id}"
