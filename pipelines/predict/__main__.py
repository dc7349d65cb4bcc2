"""The command line of `predict`."""

from __future__ import annotations

import argparse

from shtab import DIRECTORY, FILE

from pipelines.command_line import (
    Summary,
    add_model_flags,
    check_exists,
    check_model,
    guarded,
    step_parser,
)
from pipelines.places import absolute_path
from pipelines.predict.flags import MAX_REJECTED, count_of, output_place, share_of
from pipelines.progress import loading


def build_parser() -> argparse.ArgumentParser:
    parser = step_parser("predict", example="--model runs:/RUN_ID/model --input photos --output out.parquet")
    add_model_flags(parser)
    parser.add_argument(
        "--input", required=True, help="folder of files, or a table (.jsonl, .csv, .tsv, .parquet)"
    ).complete = FILE
    parser.add_argument("--output", required=True, help="Parquet file to write, a path or URI").complete = FILE
    words = "folder that a table's paths start in; default: the table's own"
    parser.add_argument("--root", default=None, metavar="DIR", help=words).complete = DIRECTORY
    words = f"share of unreadable inputs above which the step fails, once the others are written ({MAX_REJECTED})"
    parser.add_argument("--max-rejected", default=str(MAX_REJECTED), metavar="SHARE", help=words)
    words = "also the K most probable classes, in columns top_predictions and top_probabilities; all: every class"
    parser.add_argument("--top", default=None, metavar="K", help=words)
    return parser


def main(argv: list[str] | None = None) -> int:
    return guarded(build_parser(), _step, argv)


def _step(given: argparse.Namespace) -> Summary:
    output_place(given.output)
    flags = {"root": given.root, "max_rejected": share_of(given.max_rejected)}
    flags["top"] = None if given.top is None else count_of(given.top)
    check_exists("--input", absolute_path(given.input), give="a folder of files, or a table")
    check_model(given.model, given.tracking_uri)
    with loading():
        from pipelines.predict.step import run

    return run(given.model, given.input, given.output, given.tracking_uri, **flags)


if __name__ == "__main__":
    raise SystemExit(main())
