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
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from tqdm import tqdm

from pipelines.command_line import Summary, guarded, in_uploaded_copy, local_folder, step_parser
from pipelines.ray_session import num_cpus, ray_session
from pipelines.report import write_report
from uml_core.errors import InputError
from uml_core.files.atomic import LOCAL, write_whole
from uml_core.reporting.theory import build_theory_page
from uml_core.theory.simulation import agreement
from uml_core.theory.study import Request, Task, TheoryResults, as_json, run_study


def build_parser() -> argparse.ArgumentParser:
    parser = step_parser("theory", example="--trials 2000 --steps 500 --output runs/theory-quick")
    defaults = Request()
    parser.add_argument("--trials", default=defaults.trials, metavar="N", help="per model; default %(default)s")
    parser.add_argument("--seed", default=defaults.seed, metavar="S", help="the first seed; default %(default)s")
    parser.add_argument("--steps", default=defaults.steps, metavar="N", help="of each autoencoder; default %(default)s")
    parser.add_argument("--output", default="runs/theory", metavar="DIR", help="default %(default)s")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Check the theory and write the page."""
    given = vars(build_parser().parse_args(argv))

    def body() -> Summary:
        least = {"trials": 1, "seed": 0, "steps": 1}
        request = Request(**{name: _whole_number(name, given[name], bound) for name, bound in least.items()})
        return run(request, _output(given["output"]))

    return guarded(body)


def run(request: Request, directory: Path) -> Summary:
    """Run every task, write the page, its figures and theory.json, and say what came out.

    Raises:
        InputError: the output folder cannot be written; raised before anything is computed.
    """
    started = time.monotonic()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        raise InputError(f"--output {directory} cannot be written ({error.strerror}); give another folder") from None
    with ray_session():
        cpus, results = num_cpus(), run_study(request, _run_on_ray)
    wall_s = time.monotonic() - started
    page = build_theory_page(results, wall_s=wall_s, num_cpus=cpus)
    text = json.dumps({"wall_s": wall_s, "cpus": cpus, **as_json(results)}, ensure_ascii=False, indent=1)
    write_whole(LOCAL, str(directory / "theory.json"), text.encode())
    path = write_report(page.html, page.figures, directory)
    figures = [str(directory / "figures" / f"{figure.name}.svg") for figure in page.figures]
    return Summary(
        f"{page.words}\npage: {path}\n{wall_s:.0f} s on {cpus} CPUs",
        {"page": str(path), "figures": figures, "wall_s": round(wall_s, 1), **_key_results(results)},
    )


def _run_on_ray(tasks: Sequence[Task]) -> Iterator[Any]:
    references = [_run_task.remote(task) for task in tasks]
    for reference in tqdm(references, unit="task", file=sys.stderr):
        yield ray.get(reference)


@ray.remote(num_cpus=1)
def _run_task(task: Task) -> Any:
    torch.set_num_threads(1)
    return task()


def _key_results(results: TheoryResults) -> dict[str, Any]:
    found, counts = agreement(results.models), ("fails", "drawn", "met", "paper_held", "corrected_held")
    return {
        "trials": results.request.trials,
        "seeds": list(results.request.seeds),
        "steps": results.request.steps,
        "monte_carlo": {"cases": len(results.models), "agrees": found.agrees, **vars(found)},
        "statements": {each.name: {name: getattr(each, name) for name in counts} for each in results.findings},
        "exchange_rate_by_trace": [world.rate_by_trace for world in results.worlds],
        "autoencoder": {arm.arm.name: {"early": arm.early.mean, "late": arm.late.mean} for arm in results.arms},
    }


def _whole_number(name: str, given: str | int, least: int) -> int:
    if not str(given).isdecimal() or int(given) < least:
        raise InputError(f"--{name} is {given}; expected a whole number >= {least}")
    return int(given)


def _output(given: str) -> Path:
    path = local_folder("--output", given)
    if not Path(given).is_absolute() and in_uploaded_copy() and "UML_ROOT" not in os.environ:
        raise InputError(
            f"--output is {given}, relative to a Ray job's working directory, which is a temporary copy; "
            "give an absolute folder or set UML_ROOT in the job's environment"
        )
    return path


if __name__ == "__main__":
    raise SystemExit(main())
