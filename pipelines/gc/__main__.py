"""The command line of `gc`."""

from __future__ import annotations

import argparse

from pipelines.command_line import Summary, experiment_parser, step_main
from uml_core.config import Experiment


def build_parser() -> argparse.ArgumentParser:
    parser = experiment_parser("gc")
    parser.add_argument("--delete", action="store_true", help="delete what is listed; without it nothing is")
    parser.add_argument("--unfinished", action="store_true", help="also what a killed step could still go on with")
    return parser


def main(argv: list[str] | None = None) -> int:
    return step_main(build_parser(), _step, argv)


def _step(experiment: Experiment, given: argparse.Namespace) -> Summary:
    from pipelines.gc.step import run

    return run(experiment, delete_them=given.delete, unfinished=given.unfinished)


if __name__ == "__main__":
    raise SystemExit(main())
