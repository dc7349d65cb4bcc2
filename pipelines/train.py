"""Store to shared-weight model (Ray Train).

In: an embedded experiment. Out: an MLflow run with metrics, weights and the target model; test accuracy, measured once.

    python -m pipelines.train examples/demo.yaml
    python -m pipelines.train examples/demo.yaml train.twin=true      # the matched unimodal baseline beside it
    python -m pipelines.train examples/demo.yaml model.backbone=finetune train.max_steps=200    # the image encoder too
    python -m pipelines.train examples/demo.yaml model.backbone=lora train.max_steps=200        # adapters in it alone

A killed run, started again with the same line, goes on from its last checkpoint; a finished one starts a new run.
`pipelines.train_fit` runs Ray Train, `pipelines.train_loop` is what its workers run.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pipelines.provenance import run_kind
from pipelines.runtime import Summary, experiment_parser, ray_session, step_main
from pipelines.stored import StoredData, read_training_data
from uml_core.config import Experiment
from uml_core.config.unused import unused_settings
from uml_core.errors import InputError
from uml_core.tracking_uri import check_tracking

if TYPE_CHECKING:
    from uml_core.results import RunOutcome

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Train one experiment, and its unimodal twin where train.twin is set."""
    parser = experiment_parser("train", description="Train the shared-weight model on an embedded experiment.")
    return step_main(parser, lambda experiment, _: run(experiment), argv)


def run(experiment: Experiment) -> Summary:
    """Train the experiment (and its twin); returns validation and test accuracy."""
    if experiment.train.twin and run_kind(experiment) != "uml":
        raise InputError(
            "train.twin is true, and no auxiliary corpus takes part, so the twin would be the run itself; give one a "
            "mixing.loss_weight and mixing.batch_ratio above 0, or remove train.twin"
        )
    stored = read_training_data(experiment)  # the user's mistakes surface here, before anything starts
    check_tracking(experiment.tracking.uri)
    for line in (*unused_settings(experiment), *stored.data.warnings()):
        logger.warning("%s", line)
    if "stream" in stored.feeds.values():
        logger.warning("%s", stored.describe_feed(experiment))
    with ray_session(meanwhile=lambda: _prepare(experiment)):
        from pipelines.train_fit import train_in_turn

        twins = [experiment.unimodal_twin()] if experiment.train.twin else []  # of the same splits and shots
        outcome, *twin_outcomes = train_in_turn([experiment, *twins], stored)
    return _summary(experiment, stored, outcome, next(iter(twin_outcomes), None))


def _prepare(experiment: Experiment) -> None:
    """Do what takes as long as Ray's processes to start: import torch, Ray Train and MLflow, open MLflow's database."""
    from pipelines import train_fit  # noqa: F401
    from uml_core.tracking import open_experiment

    open_experiment(experiment.tracking, experiment.name)


def _summary(experiment: Experiment, stored: StoredData, outcome: RunOutcome, twin: RunOutcome | None) -> Summary:
    lines = [describe(experiment, outcome)]
    results = {**outcome.as_json(), "feed": dict(stored.feeds)}
    if twin is not None:
        lines.append(describe(experiment.unimodal_twin(), twin))
        results["twin"] = twin.as_json()
        if outcome.target_samples != twin.target_samples:
            lines.append(
                f"not matched: the two saw {outcome.target_samples:,} and {twin.target_samples:,} target samples, as "
                "train.patience ended them at different steps; a higher one lets both go on to train.max_steps"
            )
        if outcome.test_accuracy is not None and twin.test_accuracy is not None:
            difference = 100 * (outcome.test_accuracy - twin.test_accuracy)
            results["test_difference_points"] = round(difference, 3)
            lines.append(
                f"difference on test: {difference:+.1f} points with one seed; "
                "python -m pipelines.tune EXPERIMENT.yaml --space controls measures it over seeds, with controls"
            )
    return Summary("\n".join(lines), results)


def describe(experiment: Experiment, outcome: RunOutcome) -> str:
    """Return one line on a finished run."""
    test = "no test split" if outcome.test_accuracy is None else f"test {100 * outcome.test_accuracy:.1f} %"
    return (
        f"{run_kind(experiment):<9} val {100 * outcome.val_accuracy:.1f} %, {test}, best at step {outcome.best_step} "
        f"of {outcome.steps}; {outcome.trained_parameters:,} of {outcome.parameters:,} parameters trained; "
        f"{outcome.steps_per_s:.0f} steps/s; MLflow run {outcome.run_id}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
