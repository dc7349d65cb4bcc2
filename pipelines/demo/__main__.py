"""The command line of `demo`."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipelines.command_line import Summary, guarded, step_parser, with_absolute_paths
from pipelines.progress import loading
from uml_core.config import load_experiment

EXPERIMENT_FILE = Path(__file__).parents[1] / "demo.yaml"  # a link to examples/demo.yaml; in a wheel a file


def build_parser() -> argparse.ArgumentParser:
    parser = step_parser("demo", example="tune.seeds=2")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="dotted keys that override examples/demo.yaml"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    return guarded(build_parser(), _step, argv)


def _step(given: argparse.Namespace) -> Summary:
    experiment = with_absolute_paths(load_experiment(EXPERIMENT_FILE, given.overrides))
    with loading():
        from pipelines.demo.step import run

    return run(experiment)


if __name__ == "__main__":
    raise SystemExit(main())
