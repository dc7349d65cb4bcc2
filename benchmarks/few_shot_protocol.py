"""The few-shot protocol on the demo's corpora: 5 shot counts × 3 seeds × 6 arms × a grid, on one CPU and on all.

The paper's grid has 24 points an arm (space `linear_probe`); `points` of them are drawn for each arm. Start-up, MLflow,
selection and the measuring of test count. Twice as fast on two CPUs would be perfect.
"""

from __future__ import annotations

import os
from pathlib import Path

import ray

from benchmarks.figures import Figure
from pipelines.command_line import with_absolute_paths
from pipelines.embed import step as embed
from pipelines.tune import step as tune
from uml_core.config import Experiment, load_experiment
from uml_core.corpora.examples.openmoji import write_openmoji

EXPERIMENT_FILE = Path(__file__).parent.parent / "examples" / "paper" / "linear_probe.yaml"
SHOTS, SEEDS, ARMS = (1, 2, 4, 8, 16), 3, 6


def measure(directory: Path, *, points: int = 4) -> list[Figure]:
    """Measure the protocol on one CPU and on all."""
    experiment = _embedded(directory)
    num_trials = len(SHOTS) * SEEDS * ARMS * points
    seconds = {num_cpus: _sweep_s(experiment, num_cpus, num_trials) for num_cpus in sorted({1, os.cpu_count() or 1})}
    most = max(seconds)
    name = f"few-shot protocol: trials/hour, {num_trials} trials of {experiment.train.max_steps} steps"
    return [
        Figure(f"{name}, {most} CPUs against one", 3600 * num_trials / seconds[most], 3600 * num_trials / seconds[1]),
        Figure(f"few-shot protocol: s in the whole, {most} CPUs", seconds[most]),
    ]


def _embedded(directory: Path) -> Experiment:
    write_openmoji(directory / "corpora", seed=0)
    places = {
        "store": str(directory / "store"),
        "corpora.pictures.path": str(directory / "corpora" / "pictures"),
        "corpora.names.path": str(directory / "corpora" / "names.jsonl"),
        "tracking": {"uri": f"sqlite:///{directory}/mlflow.db", "artifacts": str(directory / "artifacts")},
    }
    protocol = {"tune.shots": SHOTS, "tune.seeds": SEEDS, "model.head_init": "zero_shot"}
    experiment = with_absolute_paths(load_experiment(EXPERIMENT_FILE).override({**places, **protocol}))
    embed.run(experiment)
    return experiment


def _sweep_s(experiment: Experiment, num_cpus: int, num_trials: int) -> float:
    named = experiment.override({"name": f"few-shot-{num_cpus}"})
    ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False)
    try:
        results = tune.run(named, "linear_probe", max_trials=num_trials).results
    finally:
        ray.shutdown()
    assert results["trials"] == num_trials
    return float(results["wall_s"])
