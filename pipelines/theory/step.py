"""The paper's theorems and its Gaussian study, checked by simulation (Ray tasks).

In: nothing. Out: DIR/index.html, one page that needs no other file, DIR/figures/*.svg, and DIR/theory.json.

    python -m pipelines.theory
    python -m pipelines.theory --trials 2000 --steps 500 --output runs/theory-quick

Every task is independent and takes one CPU, so a larger cluster is faster in proportion, down to the longest task.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
import torch

from pipelines.command_line import Summary
from pipelines.places import OutputFolder
from pipelines.progress import StepProgress, stage
from pipelines.ray_session import num_cpus, ray_session
from pipelines.report.step import write_report
from pipelines.timings import timed
from uml_core.reporting.theory import build_theory_page
from uml_core.theory.request import Request
from uml_core.theory.simulation import agreement
from uml_core.theory.study import Task, TheoryResults, as_json, run_study


def run(request: Request, output: str | Path) -> Summary:
    """Run every task, write the page, its figures and theory.json, and say what came out.

    Raises:
        InputError: the output folder cannot be written; raised before anything is computed.
    """
    started = time.monotonic()
    folder = OutputFolder("--output", output)
    folder.write("theory.json", b"{}")  # what cannot be written is told before an hour of simulation
    with ray_session(), timed("measure"):
        cpus, results = num_cpus(), run_study(request, _run_on_ray)
    wall_s = time.monotonic() - started
    with stage("draw", "drawing the page"):
        page = build_theory_page(results, wall_s=wall_s, num_cpus=cpus)
    text = json.dumps({"wall_s": wall_s, "cpus": cpus, **as_json(results)}, ensure_ascii=False, indent=1)
    folder.write("theory.json", text.encode())
    path = write_report(page.html, page.figures, folder)
    figures = [folder.location(f"figures/{figure.name}.svg") for figure in page.figures]
    return Summary(
        f"{page.words}\npage: {path}\n{wall_s:.0f} s on {cpus} CPUs",
        {"page": path, "figures": figures, "wall_s": round(wall_s, 1), **_key_results(results)},
    )


def _run_on_ray(tasks: Sequence[Task]) -> Iterator[Any]:
    references = [_run_task.remote(task) for task in tasks]
    with StepProgress("starting tasks") as shown:
        shown.counts("checking the theory", len(references), unit="tasks")
        for reference in references:
            found = ray.get(reference)
            shown.adds()
            yield found


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
