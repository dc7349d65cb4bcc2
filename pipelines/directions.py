"""Each corpus as the target in turn, with every subset of the others beside it: one sweep a target, one table.

In: an embedded experiment with three corpora or more that have labels. Out: a sweep of space modalities for each
target, all in one MLflow experiment, and the table of all directions.

    python -m pipelines.directions examples/tuxpaint/experiment.yaml data.test_fraction=0.2
    python -m pipelines.directions examples/tuxpaint/experiment.yaml --targets photos,sounds

A corpus without a test split gets one from `data.test_fraction`. The experiment's own target comes last, so that
models:/EXPERIMENT@best is a model of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pipelines.command_line import Summary, experiment_parser, step_main
from pipelines.ray_session import ray_session
from pipelines.run_data import build_data
from pipelines.stores import store_tables
from pipelines.tune import step as tune
from uml_core.config import Experiment
from uml_core.errors import InputError
from uml_core.reporting.collect import latest_sweeps
from uml_core.reporting.directions import table_lines, table_rows
from uml_core.sweeps.directions import chosen_targets, with_target
from uml_core.tracking.reading import experiment_runs, with_spaces
from uml_core.tracking.writing import open_experiment

SPACE = "modalities"


def main(argv: list[str] | None = None) -> int:
    parser = experiment_parser("directions", description="Sweep all subsets of corpora around each target in turn.")
    parser.add_argument("--targets", default=None, metavar="NAMES", help="by commas; default: every corpus")
    parser.add_argument("--trials", type=int, default=None, metavar="N", help="at most N trials a target")
    parser.add_argument("--resume", action="store_true", help="keep the targets whose sweep is finished")
    return step_main(parser, _step, argv)


def _step(experiment: Experiment, given: argparse.Namespace) -> Summary:
    names = [name.strip() for name in (given.targets or "").split(",") if name.strip()]
    return run(experiment, names, max_trials=given.trials, resume=given.resume)


def run(
    experiment: Experiment, targets: Sequence[str] = (), *, max_trials: int | None = None, resume: bool = False
) -> Summary:
    """Sweep around each target and put the results into one table."""
    experiments = {target: with_target(experiment, target) for target in chosen_targets(experiment, targets)}
    _check_test_rows(experiment, experiments)
    finished = _finished(experiment) if resume else set()
    lines = []
    with ray_session():
        for target, turned in experiments.items():
            if turned.config_hash in finished:
                lines.append(f"{target}: its finished sweep is kept")
                continue
            summary = tune.run(turned, SPACE, max_trials=max_trials)
            lines.append(f"{target}: {summary.results['verdict']}")
    uri = experiment.tracking.uri
    sweeps = latest_sweeps(with_spaces(uri, experiment_runs(uri, experiment.name)))
    rows = table_rows([sweep for (space, target), sweep in sweeps.items() if space == SPACE and target in experiments])
    head = "test accuracy in percent (paired difference to the target alone, in points), mean over seeds"
    return Summary("\n".join([*lines, head, *table_lines(rows)]), {"targets": list(experiments), "rows": rows})


def _check_test_rows(experiment: Experiment, experiments: dict[str, Experiment]) -> None:
    """Let a target that cannot be one surface before the first sweep starts."""
    tables = store_tables(experiment)
    for target, turned in experiments.items():
        if build_data(turned, tables).test is None:
            raise InputError(
                f"corpora.{target} has no test split, so it cannot be measured as a target; "
                "set data.test_fraction=0.2, or name others with --targets"
            )


def _finished(experiment: Experiment) -> set[str]:
    open_experiment(experiment.tracking, experiment.name)
    return {
        record.tags.get("uml.config_hash", "")
        for record in experiment_runs(experiment.tracking.uri, experiment.name)
        if record.tags.get("uml.space") == SPACE and record.status == "FINISHED"
    }


if __name__ == "__main__":
    raise SystemExit(main())
