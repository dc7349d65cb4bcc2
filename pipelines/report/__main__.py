"""The command line of `report`."""

from __future__ import annotations

import argparse

from pipelines.command_line import Summary, experiment_parser, step_main
from pipelines.places import written_place
from pipelines.progress import loading
from uml_core.config import Experiment
from uml_core.tracking.uri import check_has_runs


def build_parser() -> argparse.ArgumentParser:
    parser = experiment_parser("report")
    parser.add_argument("--output", default=None, metavar="DIR", help="folder or URI; default: report beside the store")
    return parser


def main(argv: list[str] | None = None) -> int:
    return step_main(build_parser(), _step, argv)


def _step(experiment: Experiment, given: argparse.Namespace) -> Summary:
    output = None if given.output is None else written_place("--output", given.output)
    check_has_runs(experiment.tracking.uri, lost=f"MLflow has no experiment '{experiment.name}'")
    with loading():
        from pipelines.report.step import run

    return run(experiment, output)


if __name__ == "__main__":
    raise SystemExit(main())
