"""The command line of `train`."""

from __future__ import annotations

import argparse

from pipelines.command_line import Summary, check_embedded, experiment_parser, step_main
from pipelines.progress import loading
from uml_core.config import Experiment
from uml_core.tracking.uri import check_tracking


def build_parser() -> argparse.ArgumentParser:
    return experiment_parser("train")


def main(argv: list[str] | None = None) -> int:
    return step_main(build_parser(), _step, argv)


def _step(experiment: Experiment, given: argparse.Namespace) -> Summary:
    check_embedded(experiment)
    check_tracking(experiment.tracking.uri)
    with loading():
        from pipelines.train.step import run

    return run(experiment)


if __name__ == "__main__":
    raise SystemExit(main())
