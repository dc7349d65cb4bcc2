"""The command line of `theory`."""

from __future__ import annotations

import argparse

from pipelines.command_line import Summary, guarded, step_parser
from pipelines.places import written_place
from pipelines.progress import loading
from uml_core.errors import InputError
from uml_core.theory.request import Request


def build_parser() -> argparse.ArgumentParser:
    parser = step_parser("theory", example="--trials 2000 --steps 500 --output runs/theory-quick")
    defaults = Request()
    parser.add_argument("--trials", default=defaults.trials, metavar="N", help="per model; default %(default)s")
    parser.add_argument("--seed", default=defaults.seed, metavar="S", help="the first seed; default %(default)s")
    parser.add_argument("--steps", default=defaults.steps, metavar="N", help="of each autoencoder; default %(default)s")
    parser.add_argument("--output", default="runs/theory", metavar="DIR", help="default %(default)s")
    return parser


def main(argv: list[str] | None = None) -> int:
    return guarded(build_parser(), _step, argv)


def _step(given: argparse.Namespace) -> Summary:
    least = {"trials": 1, "seed": 0, "steps": 1}
    request = Request(**{name: _whole_number(name, getattr(given, name), bound) for name, bound in least.items()})
    output = written_place("--output", given.output)
    with loading():
        from pipelines.theory.step import run

    return run(request, output)


def _whole_number(name: str, given: str | int, least: int) -> int:
    if not str(given).isdecimal() or int(given) < least:
        raise InputError(f"--{name} is {given}; expected a whole number >= {least}")
    return int(given)


if __name__ == "__main__":
    raise SystemExit(main())
