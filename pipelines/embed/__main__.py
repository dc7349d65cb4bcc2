"""The command line of `embed`."""

from __future__ import annotations

import argparse

from pipelines.command_line import Summary, check_exists, experiment_parser, step_main
from pipelines.progress import loading
from uml_core.config import Experiment


def build_parser() -> argparse.ArgumentParser:
    return experiment_parser("embed")


def main(argv: list[str] | None = None) -> int:
    return step_main(build_parser(), _step, argv)


def _step(experiment: Experiment, given: argparse.Namespace) -> Summary:
    for name, corpus in experiment.corpora.items():
        if corpus.path is not None:
            check_exists(f"corpora.{name}.path", corpus.path, give="the path of the corpus")
    with loading():
        from pipelines.embed.step import run

    return run(experiment)


if __name__ == "__main__":
    raise SystemExit(main())
