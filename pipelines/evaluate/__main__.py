"""The command line of `evaluate`."""

from __future__ import annotations

import argparse

from pipelines.command_line import Summary, experiment_parser, names_in, step_main
from pipelines.evaluate.flags import check_flags
from pipelines.places import absolute_path
from pipelines.progress import loading
from uml_core.analysis.registry import ANALYSES, chosen_analyses
from uml_core.config import Experiment
from uml_core.evaluation.registry import EVALUATORS, ON_REQUEST, evaluator_names
from uml_core.tracking.uri import check_has_runs


def build_parser() -> argparse.ArgumentParser:
    parser = experiment_parser("evaluate")
    for flag, metavar, words in (
        ("--run", "RUN_IDS", "one or more, by commas; default: the run whose model train or tune registered last"),
        (
            "--evaluators",
            "NAMES",
            f"of {','.join(EVALUATORS)}; default: all but {','.join(ON_REQUEST)}; or yours, FILE.py:function",
        ),
        ("--against", "RUN_IDS", "compare on the same test rows"),
        ("--analyses", "NAMES", f"explain the run: {','.join(ANALYSES)}, or all"),
        ("--pairs", "FILE", "true pairs for neurons: a table of ids, one column a corpus"),
    ):
        parser.add_argument(flag, default=None, metavar=metavar, help=words)
    parser.add_argument("--classes", nargs=2, default=None, metavar="CLASS", help="the two classes of decision_plane")
    return parser


def main(argv: list[str] | None = None) -> int:
    return step_main(build_parser(), _step, argv)


def _step(experiment: Experiment, given: argparse.Namespace) -> Summary:
    evaluators, run_ids, against, analyses = (
        names_in(f"--{flag}", getattr(given, flag)) for flag in ("evaluators", "run", "against", "analyses")
    )
    if evaluators:
        experiment = experiment.override({"evaluation.evaluators": evaluators})
    evaluator_names(experiment.evaluation.evaluators)
    chosen = chosen_analyses(analyses)
    pairs_file = None if given.pairs is None else absolute_path(given.pairs)
    classes = None if given.classes is None else tuple(given.classes)
    check_flags(run_ids, against, chosen, pairs_file, classes)
    check_has_runs(experiment.tracking.uri, lost=f"MLflow has no experiment '{experiment.name}'")
    with loading():
        from pipelines.evaluate.step import run

    return run(experiment, run_ids, against=against, analyses=chosen, pairs_file=pairs_file, plane_classes=classes)


if __name__ == "__main__":
    raise SystemExit(main())
