"""Several steps in one process: Ray, its workers' caches and all that is imported stay between them.

In: an experiment and the names of steps. Out: what each says; the last line is one JSON object with theirs by name.

    python -m pipelines.run examples/demo.yaml --steps embed,advise,tune,report
    python -m pipelines.run examples/demo.yaml --steps embed,tune:few_shot,report data.shots=4
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Sequence
from typing import Any

from pipelines import steps
from pipelines.command_line import Summary, experiment_parser, names_in, step_main
from pipelines.progress import loading
from uml_core.config import Experiment
from uml_core.errors import InputError, listing, nearest

RUNNABLE = {
    "embed": steps.embed,
    "advise": steps.advise,
    "train": steps.train,
    "tune": steps.tune,
    "evaluate": steps.evaluate,
    "report": steps.report,
}  # those that an experiment file alone says enough for


def build_parser() -> argparse.ArgumentParser:
    parser = experiment_parser("run")
    parser.add_argument("--steps", required=True, help=f"of {','.join(RUNNABLE)}; tune:SPACE, tune is tune:controls")
    return parser


def main(argv: list[str] | None = None) -> int:
    return step_main(build_parser(), lambda experiment, given: run(experiment, names_in("--steps", given.steps)), argv)


def run(experiment: Experiment, names: Sequence[str]) -> Summary:
    """Run the steps in their order. Raises InputError for one that is none, before any starts."""
    for name in names:
        step, separator, _ = name.partition(":")
        if step not in RUNNABLE or (separator and step != "tune"):
            raise InputError(f"--steps names '{name}'{nearest(step, RUNNABLE)}; steps: {listing(RUNNABLE)}, tune:SPACE")
    started, found = time.monotonic(), dict[str, Any]()
    with loading():
        for name in names:
            importlib.import_module(f"pipelines.{name.partition(':')[0]}.step")
    with steps.session():
        for name in names:
            print(f"== {name}  ({time.monotonic() - started:.0f} s)", flush=True)
            step, _, space = name.partition(":")
            result = RUNNABLE[step](experiment, *([space] if space else []))
            print(result.text, flush=True)
            found[name] = result.model_dump(mode="json", exclude={"text"})
    return Summary(f"{time.monotonic() - started:.0f} s", found)


if __name__ == "__main__":
    raise SystemExit(main())
