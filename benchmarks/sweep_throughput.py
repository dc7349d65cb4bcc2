"""Trials/hour of a 24-trial sweep under Ray Tune against the same trials one after another in one process."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.figures import Figure, peak_memory
from benchmarks.train_throughput import write_corpora
from pipelines import embed, tune
from pipelines.stored import store_tables
from tune_spaces import load_space, trials_of
from uml_core.config import Experiment
from uml_core.corpora.training_data import build_training_data
from uml_core.results import measure_outcome
from uml_core.training import TrainingRun

SPACE = '''
"""Learning rate × λ × seed: 2 arms of 6 grid points and 2 seeds."""
from tune_spaces import Arm, Space
def build(experiment):
    arms = (Arm("unimodal", {"mixing.loss_weight": {"names": 0.0}}), Arm("uml"))
    grid = {"optim.lr": (1e-4, 1e-3, 1e-2), "optim.weight_decay": (0.0, 0.01)}
    return Space("how fast?", arms, "unimodal", "uml", (0, 1), grid=grid)
'''


def measure(directory: Path) -> list[Figure]:
    """Measure the bare sequence, then the sweep; MLflow and start-up count for ours."""
    experiment = write_corpora(directory).override(
        {"train.max_steps": 3000, "train.eval_every": 500, "train.patience": 100}
    )
    file = directory / "space.py"
    file.write_text(SPACE, encoding="utf-8")
    embed.run(experiment)
    specs = trials_of(load_space(str(file), experiment), experiment)
    bare_s = _one_after_another(experiment, [spec.experiment for spec in specs])
    with peak_memory() as memory:
        ours_s = tune.run(experiment, str(file)).results["wall_s"]
    hour = 3600 * len(specs)
    return [
        Figure(f"sweep: trials/hour, {len(specs)} trials of 3,000 steps", hour / ours_s, hour / bare_s),
        Figure("sweep: peak memory of all processes, GiB", memory.gib, digits=2),
    ]


def _one_after_another(experiment: Experiment, trials: list[Experiment]) -> float:
    tables = store_tables(experiment)
    started = time.perf_counter()
    for trial in trials:
        run = TrainingRun(trial, build_training_data(trial, tables))
        for _ in run.evaluations():
            pass
        measure_outcome(run)
    return time.perf_counter() - started
