"""The command line of `directions`."""

from __future__ import annotations

import argparse

from pipelines.command_line import Summary, check_embedded, experiment_parser, names_in, step_main
from pipelines.progress import loading
from uml_core.config import Experiment
from uml_core.tracking.uri import check_tracking


def build_parser() -> argparse.ArgumentParser:
    parser = experiment_parser("directions")
    parser.add_argument("--targets", default=None, metavar="NAMES", help="by commas; default: every corpus")
    parser.add_argument("--trials", type=int, default=None, metavar="N", help="at most N trials a target")
    parser.add_argument("--resume", action="store_true", help="keep the targets whose sweep is finished")
    return parser


def main(argv: list[str] | None = None) -> int:
    return step_main(build_parser(), _step, argv)


def _step(experiment: Experiment, given: argparse.Namespace) -> Summary:
    targets = names_in("--targets", given.targets)
    check_embedded(experiment)
    check_tracking(experiment.tracking.uri)
    with loading():
        from pipelines.directions.step import run

    return run(experiment, targets, max_trials=given.trials, resume=given.resume)


if __name__ == "__main__":
    raise SystemExit(main())
