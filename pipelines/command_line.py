"""What every step shares: the command line, exit statuses, absolute paths.

    python -m pipelines.STEP EXPERIMENT.yaml [key=value ...] [--dry-run]

A step is a function from an experiment and its flags to a `Summary`. `step_main` does the rest: it prints the
summary and, as the last line, one JSON object; a user's mistake ends with one line on stderr and status 2.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import gc
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shtab import FILE

from pipelines import STEPS
from pipelines.logs import KNOWN, stderr_of
from pipelines.places import absolute_path, check_no_password, opened, written_place
from pipelines.timings import CLOCK, table
from uml_core.config import Experiment, TrackingConfig, load_experiment
from uml_core.errors import InputError
from uml_core.tracking.uri import check_has_runs, without_password


@dataclass(frozen=True)
class Summary:
    """What a step ends with: a few lines for a person, and the key results as one JSON object."""

    text: str
    results: dict[str, Any]


Step = Callable[[Experiment, argparse.Namespace], Summary]


def program(step: str) -> str:
    """How the user has called a step: `uml STEP`, the installed command, or as a module."""
    return f"{'uml ' if Path(sys.argv[0]).name == 'uml' else 'python -m pipelines.'}{step}"


def step_parser(step: str, *, example: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program(step), description=STEPS[step], epilog=f"example: {program(step)} {example}"
    )
    parser.add_argument("--timings", action="store_true", help="also say where the wall time went")
    return parser


def experiment_parser(step: str) -> argparse.ArgumentParser:
    parser = step_parser(step, example="examples/demo.yaml data.shots=4")
    parser.add_argument("experiment", help="experiment file (YAML)").complete = FILE
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted keys that override the file")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved experiment and stop")
    return parser


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a step that reads a logged model in place of an experiment file."""
    parser.add_argument("--model", required=True, help="runs:/RUN_ID/model, models:/NAME@ALIAS, or a local folder")
    parser.add_argument("--tracking-uri", default=TrackingConfig().uri)


def check_model(model: str, tracking_uri: str) -> None:
    """Refuse a model that cannot be there. Raises InputError for a folder or a SQLite file that does not exist."""
    if ":/" in model:
        check_has_runs(absolute_path(tracking_uri), lost=f"--model {model} cannot be fetched")
    else:
        check_exists("--model", absolute_path(model), give="runs:/RUN_ID/model, models:/NAME@ALIAS, or a local folder")


def names_in(flag: str, text: str | None) -> list[str]:
    """The names that a flag lists, by commas; none where it is not given. Raises InputError for an empty list."""
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    if text is not None and not names:
        raise InputError(f"{flag} is empty; give one or more names, separated by commas")
    return list(dict.fromkeys(names))


def step_main(parser: argparse.ArgumentParser, step: Step, argv: list[str] | None) -> int:
    """Run a step that an experiment file says all of; returns the exit status."""

    def body(arguments: argparse.Namespace) -> Summary | None:
        experiment = with_absolute_paths(load_experiment(arguments.experiment, arguments.overrides))
        KNOWN["experiment"] = experiment.name
        if arguments.dry_run:
            print(without_password(experiment).to_yaml(), end="")
            return None
        if "://" not in experiment.store:
            return step(experiment, arguments)
        from pipelines.storage_watch import outages_said  # pyarrow

        with outages_said(*opened("store", experiment.store)):
            return step(experiment, arguments)

    return guarded(parser, body, argv)


def guarded(
    parser: argparse.ArgumentParser, body: Callable[[argparse.Namespace], Summary | None], argv: list[str] | None
) -> int:
    """Run a step's body on its flags; returns the exit status: 0 done, 2 a user's mistake, in one line on stderr."""
    with contextlib.ExitStack() as stderr:
        try:
            stderr.enter_context(stderr_of(parser.prog.replace(".", " ").split()[-1]))
            arguments = parser.parse_intermixed_args(argv)
            CLOCK.begin()
            atexit.register(gc.freeze)  # else Python, at its end, looks at all objects of torch and MLflow: 2 s of CPU
            summary = body(arguments)
        except Exception as error:
            from uml_core.files.outages import outage_of  # pyarrow

            said = error if isinstance(error, InputError) else outage_of(error)
            if said is None:
                raise
            sys.stdout.flush()
            print(f"error: {said}", file=sys.stderr)
            return 2
    if summary is not None:
        print(summary.text)
        results = summary.results
        if arguments.timings:
            taken = CLOCK.taken()
            print(table(taken))
            results = {**results, "timings": taken}
        print(json.dumps(results, ensure_ascii=False))
    return 0


def with_absolute_paths(experiment: Experiment) -> Experiment:
    """Make the experiment's places absolute: workers and jobs do not share the driver's working directory.

    Raises InputError where the store or what MLflow keeps would go with a Ray job (`pipelines.places`).
    """
    tracking = experiment.tracking
    written = {"store": experiment.store, "tracking.uri": tracking.uri}
    if tracking.uri.startswith(("http://", "https://", "databricks")):  # a server keeps artifacts itself
        read = {"tracking.artifacts": tracking.artifacts}
    else:
        written["tracking.artifacts"], read = tracking.artifacts, {}
    read |= {
        "feed.cache": experiment.feed.cache,
        "data.subset": experiment.data.subset,
        **{f"evaluation.class_maps.{name}": path for name, path in experiment.evaluation.class_maps.items()},
        **{f"corpora.{name}.path": corpus.path for name, corpus in experiment.corpora.items()},
        **{f"corpora.{name}.root": corpus.root for name, corpus in experiment.corpora.items()},
    }
    absolute = {key: written_place(key, path) for key, path in written.items()}
    absolute |= {key: absolute_path(path) for key, path in read.items() if path is not None}
    given = {**written, **read}
    for key, place in absolute.items():
        if key != "tracking.uri":  # a database's password stands there, and is never shown
            check_no_password(key, place)
    return experiment.override({key: path for key, path in absolute.items() if path != given[key]})


def check_embedded(experiment: Experiment) -> None:
    """Refuse a local store without a corpus before torch is imported; what its folder holds is looked at later."""
    for corpus in experiment.corpora:
        if "://" not in experiment.store and not (Path(experiment.store) / corpus).is_dir():
            raise InputError(
                f"store {experiment.store} has no embeddings of corpus '{corpus}'; run python -m pipelines.embed with "
                "this experiment file first"
            )


def check_exists(setting: str, place: str, *, give: str) -> None:
    """Raise InputError for a local file or folder that is not there; a URI or a pattern is looked at by its reader."""
    from uml_core.files.paths import kind_of  # pyarrow

    if "://" not in place and not set(place) & set("*?[{") and kind_of(place, setting) == "missing":
        raise InputError(f"{setting} is {place}, which does not exist; give {give}")
