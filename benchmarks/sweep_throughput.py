"""Trials/hour of a 24-trial sweep under Ray Tune against the same trials one after another in one process."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.figures import Figure, peak_memory
from benchmarks.train_throughput import bare_by_threads, bare_steps_per_s, write_corpora
from pipelines import embed, tune
from pipelines.stored import store_tables
from tune_spaces import load_space, trials_of
from uml_core.config import Experiment
from uml_core.corpora.training_data import build_training_data
from uml_core.results import measure_outcome
from uml_core.store import CorpusTable
from uml_core.training import TrainingRun

STEPS = 3000

SPACE = '''
"""Learning rate × λ × seed: 2 arms of 6 grid points and 2 seeds."""
from tune_spaces import Arm, Space
def build(experiment):
    arms = (Arm("unimodal", {"mixing.loss_weight": {"names": 0.0}}), Arm("uml"))
    grid = {"optim.lr": (1e-4, 1e-3, 1e-2), "optim.weight_decay": (0.0, 0.01)}
    return Space("how fast?", arms, "unimodal", "uml", (0, 1), grid=grid)
'''


def measure(directory: Path) -> list[Figure]:
    """Measure both sequences, then the sweep; MLflow and start-up count for ours, nothing but training for theirs."""
    experiment = write_corpora(directory).override(
        {"train.max_steps": STEPS, "train.eval_every": 500, "train.patience": 100}
    )
    file = directory / "space.py"
    file.write_text(SPACE, encoding="utf-8")
    embed.run(experiment)
    specs = trials_of(load_space(str(file), experiment), experiment)
    tables = store_tables(experiment)
    rates = bare_by_threads(tables)
    torch.set_num_threads(max(rates, key=lambda num_threads: rates[num_threads]))
    bare_s = sum(_bare_s(tables, spec.experiment) for spec in specs)
    own_s = _one_after_another(tables, [spec.experiment for spec in specs])
    with peak_memory() as memory:
        ours_s = tune.run(experiment, str(file)).results["wall_s"]
    hour, name = 3600 * len(specs), f"sweep: trials/hour, {len(specs)} trials of {STEPS:,} steps"
    return [
        Figure(f"{name}, against the bare loop, one trial after another", hour / ours_s, hour / bare_s),
        Figure(f"{name}, against our loop, one trial after another", hour / ours_s, hour / own_s),
        Figure("sweep: peak memory of all processes, GiB", memory.gib, digits=2),
    ]


def _bare_s(tables: Mapping[str, CorpusTable], trial: Experiment) -> float:
    with_names = trial.loss_weight("names") > 0
    return STEPS / bare_steps_per_s(tables, steps=STEPS, lr=trial.optim.lr, with_names=with_names)


def _one_after_another(tables: Mapping[str, CorpusTable], trials: Sequence[Experiment]) -> float:
    started = time.perf_counter()
    for trial in trials:
        run = TrainingRun(trial, build_training_data(trial, tables))
        for _ in run.evaluations():
            pass
        measure_outcome(run)
    return time.perf_counter() - started
