"""The command line of `tune`."""

from __future__ import annotations

import argparse

from pipelines.command_line import Summary, check_embedded, experiment_parser, program, step_main
from pipelines.progress import loading
from pipelines.tune.flags import checked_space
from tune_spaces import available_spaces
from uml_core.config import Experiment
from uml_core.errors import listing
from uml_core.sweeps.space import check_effect, points_per_group
from uml_core.tracking.uri import check_tracking


def build_parser() -> argparse.ArgumentParser:
    parser = experiment_parser("tune")
    parser.epilog = f"example: {program('tune')} examples/demo.yaml --space controls tune.seeds=3"
    spaces = listing(available_spaces(), limit=20)
    parser.add_argument("--space", required=True, help=f"a space of tune_spaces/ ({spaces}), or a file of yours")
    parser.add_argument("--trials", type=int, default=None, metavar="N", help="at most N trials, the same per arm")
    parser.add_argument("--resume", action="store_true", help="go on with a killed sweep; fails if there is none")
    return parser


def main(argv: list[str] | None = None) -> int:
    return step_main(build_parser(), _step, argv)


def _step(experiment: Experiment, given: argparse.Namespace) -> Summary:
    space = checked_space(given.space, experiment)
    points_per_group(space, given.trials)  # both are refused before Ray starts
    check_effect(space, experiment)
    check_embedded(experiment)
    check_tracking(experiment.tracking.uri)
    if space.takes_no_step:  # which Ray would only delay
        return _run(experiment, given)
    from pipelines.ray_session import ray_session

    with ray_session(meanwhile=_load):
        return _run(experiment, given)


def _load() -> None:
    from pipelines.tune import step, tuner  # noqa: F401


def _run(experiment: Experiment, given: argparse.Namespace) -> Summary:
    with loading():
        from pipelines.tune.step import run

    return run(experiment, given.space, max_trials=given.trials, resume=given.resume)


if __name__ == "__main__":
    raise SystemExit(main())
