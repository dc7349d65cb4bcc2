"""The command line of `status`."""

from __future__ import annotations

import argparse
import shlex

from pipelines.command_line import Summary, experiment_parser, step_main
from uml_core.config import Experiment


def build_parser() -> argparse.ArgumentParser:
    return experiment_parser("status")


def main(argv: list[str] | None = None) -> int:
    return step_main(build_parser(), _step, argv)


def _step(experiment: Experiment, given: argparse.Namespace) -> Summary:
    from pipelines.status.step import run

    line = shlex.join([given.experiment, *(each for each in given.overrides if not each.startswith("tracking.uri="))])
    return run(experiment, line)


if __name__ == "__main__":
    raise SystemExit(main())
