"""The paper's theorems and its Gaussian study, checked by simulation (Ray tasks).

In: nothing. Out: DIR/index.html, one page that needs no other file, DIR/figures/*.png and *.svg, and DIR/theory.json.

    python -m pipelines.theory
    python -m pipelines.theory --trials 2000 --steps 500 --output runs/theory-quick

Every task is independent and takes one CPU, so a larger cluster is faster in proportion, down to the longest task.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import torch
from tqdm import tqdm

from pipelines.command_line import Summary, absolute_path, guarded, in_uploaded_copy
from pipelines.ray_session import num_cpus, ray_session
from pipelines.report import write_report
from uml_core.errors import InputError
from uml_core.files.atomic import LOCAL, write_whole
from uml_core.reporting.theory import build_theory_page
from uml_core.theory.study import Request, Task, TheoryResults, as_json, collect, plan

DEFAULT_OUTPUT = "runs/theory"


def main(argv: list[str] | None = None) -> int:
    """Check the theory and write the page."""
    defaults = Request()
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.theory",
        description="Check the paper's theorems and its Gaussian study by simulation; no experiment file is needed.",
        epilog="example: python -m pipelines.theory --trials 2000 --steps 500 --output runs/theory-quick",
    )
    parser.add_argument("--trials", default=defaults.trials, metavar="N", help=f"per case; default {defaults.trials}")
    parser.add_argument("--seed", default=defaults.seed, metavar="S", help=f"the first seed; default {defaults.seed}")
    parser.add_argument(
        "--steps", default=defaults.num_steps, metavar="N", help=f"of each autoencoder; default {defaults.num_steps}"
    )
    parser.add_argument("--output", default=DEFAULT_OUTPUT, metavar="DIR", help=f"default {DEFAULT_OUTPUT}")
    arguments = parser.parse_args(argv)
    return guarded(lambda: run(_request(arguments), _output(arguments.output)))


def run(request: Request, directory: Path) -> Summary:
    """Run every task, write the page, its figures and theory.json, and say what came out.

    Raises:
        InputError: the output folder cannot be written; raised before anything is computed.
    """
    started = time.monotonic()
    _writable(directory)
    tasks = plan(request)
    with ray_session():
        cpus = num_cpus()
        results = collect(request, _run_all(tasks))
    wall_s = time.monotonic() - started
    page = build_theory_page(results, wall_s=wall_s, num_cpus=cpus)
    try:
        content = {"wall_s": wall_s, "cpus": cpus, **as_json(results)}
        text = json.dumps(content, ensure_ascii=False, indent=1)
        write_whole(LOCAL, str(directory / "theory.json"), text.encode())
        path = write_report(page.html, page.figures, directory)
    except OSError as error:
        raise _unwritable(directory, error) from None
    figures = [str(directory / "figures" / f"{figure.name}.svg") for figure in page.figures]
    text = f"{page.words}\npage: {path}\n{len(tasks)} tasks, {wall_s:.0f} s on {cpus} CPUs"
    return Summary(text, {"page": str(path), "figures": figures, "wall_s": round(wall_s, 1), **_key_results(results)})


def _run_all(tasks: list[Task]) -> Iterator[Any]:
    """Yield the results of every task as they come."""
    references = [run_task.options(name=task.words).remote(task) for task in tasks]
    with tqdm(total=len(tasks), unit="task", file=sys.stderr) as bar:
        while references:
            done, references = ray.wait(references)
            for reference in done:
                yield from ray.get(reference)
                bar.update()


@ray.remote(num_cpus=1)
def run_task(task: Task) -> list[Any]:
    """Run one task on one core."""
    torch.set_num_threads(1)
    return task.run()


def _key_results(results: TheoryResults) -> dict[str, Any]:
    found = results.agreement
    return {
        "trials": results.request.trials,
        "seeds": list(results.request.seeds),
        "steps": results.request.num_steps,
        "monte_carlo": {"cases": len(results.cases), "agrees": found.agrees, **as_json(found)},
        "statements": {survey.name: as_json(survey) for survey in results.surveys},
        "exchange_rate_by_trace": [result.by_trace for result in results.exchange],
        "autoencoder": {
            arm.arm.name: {"early": arm.early.mean, "late": arm.late.mean, "steps_per_s": round(arm.steps_per_s)}
            for arm in results.arms
        },
    }


def _request(arguments: argparse.Namespace) -> Request:
    return Request(
        trials=_whole_number("--trials", arguments.trials, least=1),
        seed=_whole_number("--seed", arguments.seed, least=0),
        num_steps=_whole_number("--steps", arguments.steps, least=1),
    )


def _whole_number(flag: str, given: str | int, *, least: int) -> int:
    try:
        number = int(given)
    except ValueError:
        number = least - 1
    if number < least:
        raise InputError(f"{flag} is {given}; expected a whole number >= {least}")
    return number


def _output(given: str) -> Path:
    if not given or "://" in given:
        raise InputError(f"--output is {given!r}; give a local folder")
    path = absolute_path(given)
    if path != given and in_uploaded_copy() and "UML_ROOT" not in os.environ:
        raise InputError(
            f"--output is {given}, relative to a Ray job's working directory, which is a temporary copy; "
            "give an absolute folder or set UML_ROOT in the job's environment"
        )
    return Path(path)


def _writable(directory: Path) -> None:
    """Refuse a folder that cannot be written now, not after minutes of work."""
    probe = directory / f".probe.{os.getpid()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _unwritable(directory, error) from None


def _unwritable(directory: Path, error: OSError) -> InputError:
    return InputError(f"--output {directory} cannot be written ({error.strerror}); give another folder")


if __name__ == "__main__":
    raise SystemExit(main())
