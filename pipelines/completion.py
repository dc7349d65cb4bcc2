"""Completion of `uml` for a shell: steps, flags, what a flag allows, and files (arguments with `complete`).

    uml completion bash > ~/.local/share/bash-completion/completions/uml
    uml completion zsh > ~/.zfunc/_uml

The script is static: pressing TAB starts no Python.
"""

from __future__ import annotations

import argparse
import importlib

import shtab

from pipelines import STEPS, step_module
from pipelines.command_line import program


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program("completion"), description=STEPS["completion"])
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)
    return parser


def main(argv: list[str] | None = None) -> int:
    print(script(build_parser().parse_args(argv).shell))
    return 0


def script(shell: str) -> str:
    """The completion script of a shell, from the parsers of all steps."""
    parser = argparse.ArgumentParser(prog="uml")
    steps = parser.add_subparsers()
    for step, line in STEPS.items():
        own = importlib.import_module(step_module(step)).build_parser()
        steps.add_parser(step, help=line, description=line, parents=[own], add_help=False)
    return shtab.complete(parser, shell)


if __name__ == "__main__":
    raise SystemExit(main())
