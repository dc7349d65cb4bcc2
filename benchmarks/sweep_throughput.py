"""Trials/hour of sweeps under Ray Tune against the same trials one after another in one process.

MLflow, start-up, selection and the measuring of test count for ours; nothing but training counts for the bare loop, on
the thread count that is better for it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.bare_head import bare_steps_per_s
from benchmarks.figures import Figure, experiment_in, peak_memory
from benchmarks.train_throughput import bare_by_threads, write_corpora
from pipelines.embed import step as embed
from pipelines.stores import store_tables
from pipelines.tune import step as tune
from tune_spaces import load_space, trials_of
from uml_core.config import Experiment
from uml_core.data.training_data import build_training_data
from uml_core.evaluation.outcome import measure_outcome
from uml_core.store.corpus_table import CorpusTable
from uml_core.tracking.reading import experiment_runs
from uml_core.training.run import TrainingRun

STEPS, GRID_STEPS, GRID_TRIALS = 3000, 2000, 120

SPACE = '''
"""Learning rate × λ × seed: 2 arms of 6 grid points and 2 seeds."""
from tune_spaces import Arm, Space
def build(experiment):
    arms = (Arm("unimodal", {"mixing.loss_weight": {"names": 0.0}}), Arm("uml"))
    grid = {"optim.lr": (1e-4, 1e-3, 1e-2), "optim.weight_decay": (0.0, 0.01)}
    return Space("how fast?", arms, "unimodal", "uml", (0, 1), grid=grid)
'''

TEXTS = ("names", "sentences", "facts")
SOLVED_CLASSES, SOLVED_TRIALS = 20, 600
SOLVED_SPACE = '''
"""Heads in closed form: 10 arms, 3 shots and 20 seeds."""
import itertools
from tune_spaces import Arm, Space
TEXTS = NAMES
def prior(texts, control="none", head="prior"):
    weights = {f"mixing.loss_weight.{name}": float(name in texts) for name in TEXTS}
    return {"model.head": head, **weights, **{f"corpora.{name}.control": control for name in TEXTS}}
def build(experiment):
    subsets = [texts for count in (1, 2, 3) for texts in itertools.combinations(TEXTS, count)]
    arms = (
        Arm("ridge", prior((), head="ridge"), role="ridge"),
        *(Arm("_".join(texts), prior(texts), role="method") for texts in subsets),
        Arm("shuffled", prior(TEXTS, "shuffled_labels"), role="shuffled"),
        Arm("noise", prior(TEXTS, "noise"), role="noise"),
    )
    return Space("how fast?", arms, "ridge", "_".join(TEXTS), tuple(range(20)), {"data.shots": (1, 2, 4)})
'''.replace("NAMES", str(TEXTS))


def measure(directory: Path) -> list[Figure]:
    """Measure both sequences of 24 trials, then the sweep, with packs and without."""
    experiment = _embedded(directory, STEPS)
    file = directory / "space.py"
    file.write_text(SPACE, encoding="utf-8")
    trials = [spec.experiment for spec in trials_of(load_space(str(file), experiment), experiment)]
    tables = store_tables(experiment)
    bare_s = _bare_s(tables, trials, STEPS)
    own_s = _one_after_another(tables, trials)
    with peak_memory() as memory:
        ours_s = tune.run(experiment, str(file)).results["wall_s"]
    alone_s = tune.run(experiment.override({"tune.pack": 1}), str(file)).results["wall_s"]
    hour, name = 3600 * len(trials), f"sweep: trials/hour, {len(trials)} trials of {STEPS:,} steps"
    return [
        Figure(f"{name}, against the bare loop, one trial after another", hour / ours_s, hour / bare_s),
        Figure(f"{name}, against our loop, one trial after another", hour / ours_s, hour / own_s),
        Figure(f"{name}, in packs against alone (tune.pack=1)", hour / ours_s, hour / alone_s),
        Figure("sweep: peak memory of all processes, GiB", memory.gib, digits=2),
    ]


def measure_grid(directory: Path) -> list[Figure]:
    """Measure the paper's linear-probe grid, 120 trials, with packs and without, against the bare loop."""
    experiment = _embedded(directory, GRID_STEPS).override({"tune.seeds": 1})
    specs = trials_of(load_space("linear_probe", experiment), experiment, max_trials=GRID_TRIALS)
    bare_s = _bare_s(store_tables(experiment), [spec.experiment for spec in specs], GRID_STEPS)
    ours_s = tune.run(experiment, "linear_probe", max_trials=GRID_TRIALS).results["wall_s"]
    alone = experiment.override({"tune.pack": 1})
    alone_s = tune.run(alone, "linear_probe", max_trials=GRID_TRIALS).results["wall_s"]
    hour, name = (
        3600 * len(specs),
        f"grid: trials/hour, space linear_probe, {len(specs)} trials of {GRID_STEPS:,} steps",
    )
    return [
        Figure(f"{name}, against the bare loop, one trial after another", hour / ours_s, hour / bare_s),
        Figure(f"{name}, each trial alone (tune.pack=1), against the bare loop", hour / alone_s, hour / bare_s),
    ]


def measure_overhead(directory: Path) -> list[Figure]:
    """Measure what a trial costs beyond its training: that grid with one step a trial, each trial alone."""
    experiment = _embedded(directory, GRID_STEPS).override({"tune.seeds": 1, "train.max_steps": 1, "tune.pack": 1})
    results = tune.run(experiment, "linear_probe", max_trials=GRID_TRIALS).results
    name = f"grid: s a trial beyond its training, {GRID_TRIALS} trials of one step, tune.pack=1"
    return [Figure(f"{name}, start, MLflow, selection and test included", results["wall_s"] / GRID_TRIALS, digits=2)]


def measure_solved(directory: Path) -> list[Figure]:
    """Measure 600 heads in closed form, in the driver: from the first trial to the end of the sweep."""
    experiment = _solvable(directory)
    embed.run(experiment)
    file = directory / "space.py"
    file.write_text(SOLVED_SPACE, encoding="utf-8")
    started = time.time()
    results = tune.run(experiment, str(file)).results
    ended = time.time()
    records = experiment_runs(experiment.tracking.uri, experiment.name)
    first = min(record.start_time_ms for record in records if record.kind == "trial") / 1000
    assert (results["trials"], results["failed"]) == (SOLVED_TRIALS, 0)
    name = f"closed-form sweep: {SOLVED_TRIALS} trials"
    return [
        Figure(f"{name}, s after start-up, MLflow, selection, test and report included", ended - first, digits=1),
        Figure(f"{name}, s of start-up before it", first - started, digits=1),
    ]


def _solvable(directory: Path) -> Experiment:
    """Embeddings of 128 dimensions in 20 classes, and three texts about them of 64."""
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(SOLVED_CLASSES, 16))
    splits = {"target": ["train"] * 16 + ["val"] * 4 + ["test"] * 10, **dict.fromkeys(TEXTS, ["train"] * 8)}
    for name, of_class in splits.items():
        codes, width = np.repeat(np.arange(SOLVED_CLASSES), len(of_class)), 128 if name == "target" else 64
        values = latents[codes] @ rng.normal(size=(16, width)) + 4 * rng.normal(size=(len(codes), width))
        rows = {"label": [f"{code:02d}" for code in codes], "split": of_class * SOLVED_CLASSES}
        pq.write_table(pa.table({**rows, "embedding": values.tolist()}), directory / f"{name}.parquet")
    corpora = {
        name: {"modality": "vector", "format": "embeddings", "path": str(directory / f"{name}.parquet")}
        for name in splits
    }
    one = {"max_concurrent_trials": 1}
    return experiment_in(directory, {"target": "target", "corpora": corpora, "tune": one})


def _embedded(directory: Path, steps: int) -> Experiment:
    experiment = write_corpora(directory).override(
        {"train.max_steps": steps, "train.eval_every": 500, "train.patience": 100, "data.test_fraction": 0.2}
    )
    embed.run(experiment)
    return experiment


def _bare_s(tables: Mapping[str, CorpusTable], trials: Sequence[Experiment], steps: int) -> float:
    """The seconds of the trials' bare loops; loops of equal shapes take equally long, and are timed once."""
    rates = bare_by_threads(tables, trials[-1])
    torch.set_num_threads(max(rates, key=lambda num_threads: rates[num_threads]))
    seconds: dict[tuple[object, ...], float] = {}
    for trial in trials:
        if (shape := _shape(trial)) not in seconds:
            seconds[shape] = steps / bare_steps_per_s(tables, trial, steps=steps)
    return sum(seconds[_shape(trial)] for trial in trials)


def _shape(trial: Experiment) -> tuple[object, ...]:
    taking_part = tuple(name for name in trial.corpora if trial.loss_weight(name) > 0)
    return tuple(trial.corpora), taking_part, trial.train.batch_size, trial.model.learnable_scale


def _one_after_another(tables: Mapping[str, CorpusTable], trials: Sequence[Experiment]) -> float:
    started = time.perf_counter()
    for trial in trials:
        run = TrainingRun(trial, build_training_data(trial, tables))
        for _ in run.evaluations():
            pass
        measure_outcome(run)
    return time.perf_counter() - started
