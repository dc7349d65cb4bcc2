"""The command line of `advise`."""

from __future__ import annotations

import argparse

from pipelines.command_line import Summary, check_embedded, experiment_parser, step_main
from pipelines.progress import loading
from uml_core.config import Experiment
from uml_core.sweeps.space import related_auxiliaries

DRAWS = 10


def build_parser() -> argparse.ArgumentParser:
    parser = experiment_parser("advise")
    parser.add_argument("--draws", type=_count, default=DRAWS, help=f"draws of shots and validation (default {DRAWS})")
    return parser


def main(argv: list[str] | None = None) -> int:
    return step_main(build_parser(), _step, argv)


def _step(experiment: Experiment, given: argparse.Namespace) -> Summary:
    related_auxiliaries(experiment)  # refuses an experiment without any
    check_embedded(experiment)
    with loading():
        from pipelines.advise.step import run

    return run(experiment, given.draws)


def _count(text: str) -> int:
    value = int(text) if text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return value


if __name__ == "__main__":
    raise SystemExit(main())
