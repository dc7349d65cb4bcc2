"""The command line of `export`."""

from __future__ import annotations

import argparse

from pipelines.command_line import Summary, add_model_flags, check_model, guarded, step_parser
from pipelines.places import written_place
from pipelines.progress import loading
from uml_core.serving import EXPORT_FORMATS


def build_parser() -> argparse.ArgumentParser:
    parser = step_parser("export", example="--model runs:/RUN_ID/model --output head")
    add_model_flags(parser)
    parser.add_argument("--output", required=True, help="folder or URI to write")
    parser.add_argument("--format", choices=EXPORT_FORMATS, default=None, help="default: both")
    return parser


def main(argv: list[str] | None = None) -> int:
    return guarded(build_parser(), _step, argv)


def _step(given: argparse.Namespace) -> Summary:
    written_place("--output", given.output)
    check_model(given.model, given.tracking_uri)
    with loading():
        from pipelines.export.step import run

    formats = EXPORT_FORMATS if given.format is None else (given.format,)
    return run(given.model, given.output, given.tracking_uri, formats=formats)


if __name__ == "__main__":
    raise SystemExit(main())
