"""Test accuracy of selected trials, measured once: heads here, trained encoders as Ray tasks with a trial's share."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import ray
import torch

from pipelines.ray_session import num_cpus, num_gpus
from pipelines.run_data import build_data
from pipelines.stores import Tables
from pipelines.tune.encoder_trial import process_sources
from pipelines.tune.folder import SweepFolder
from pipelines.tune.proposals import trial_resources
from uml_core.config import Experiment, parse_experiment
from uml_core.evaluation.outcome import evaluated_run, measure_outcome
from uml_core.evaluation.registry import EVALUATORS, measure
from uml_core.sweeps.space import TrialSpec
from uml_core.tracking.records import MetricPoint
from uml_core.training.run import TrainingRun

Files = dict[str, bytes]
Measured = Iterator[tuple[TrialSpec, list[MetricPoint], Files]]


def measure_trials(
    specs: Sequence[TrialSpec], tables: Tables, folder: SweepFolder, *, drawn: Collection[str]
) -> Measured:
    """Yield trials with what is measured of them on test and shifted test sets from their stored weights; Ray runs.

    Of trials whose keys are in `drawn`, tables and the confusion matrix as well.
    """
    heavy = [spec for spec in specs if spec.experiment.model.backbone != "frozen"]
    for spec in specs:
        if spec not in heavy:
            data, state = build_data(spec.experiment, tables), folder.read_state(spec.key)
            yield spec, *measured(spec.experiment, data, state, drawn=spec.key in drawn)
    if heavy:
        yield from _on_cluster(heavy, tables, folder, drawn)


def _on_cluster(specs: Sequence[TrialSpec], tables: Tables, folder: SweepFolder, drawn: Collection[str]) -> Measured:
    settings = specs[0].experiment.tune
    resources, at_once = trial_resources(settings, cpus=num_cpus(), gpus=num_gpus())
    task = ray.remote(_measure).options(num_cpus=resources["cpu"], num_gpus=resources.get("gpu", 0))
    shared, to_come, running = ray.put(dict(tables)), list(specs), {}
    while to_come or running:
        while to_come and len(running) < at_once:
            spec = to_come.pop(0)
            experiment = spec.experiment.model_dump(mode="json")
            running[task.remote(experiment, shared, folder.uri, spec.key, drawn=spec.key in drawn)] = spec
        (done,), _ = ray.wait(list(running))
        yield running.pop(done), *ray.get(done)


def _measure(
    tree: Mapping[str, Any], tables: Tables, folder_uri: str, key: str, *, drawn: bool
) -> tuple[list[MetricPoint], Files]:
    """Measure one trial in a process of the cluster."""
    torch.set_num_threads(1)
    experiment = parse_experiment(tree)
    data = build_data(experiment, tables, process_sources())
    return measured(experiment, data, SweepFolder(folder_uri).read_state(key), drawn=drawn)


def measured(
    experiment: Experiment, data: Any, state: dict[str, Any], *, drawn: bool
) -> tuple[list[MetricPoint], Files]:
    """Return what a finished trial amounts to, on test as well, and files by name; each row is encoded once."""
    device = "cuda" if experiment.model.backbone != "frozen" and experiment.tune.gpus_per_trial else "cpu"
    run = TrainingRun(experiment, data, device=device)
    run.load_result(state)
    evaluated = evaluated_run(run)
    outcome = measure_outcome(run, evaluated=evaluated)
    evaluators = ("test", "shift", "classes") if drawn else ("test", "shift")
    details = measure(evaluated, {name: EVALUATORS[name] for name in evaluators})
    points = [*outcome.points(), *(MetricPoint(*item, outcome.steps) for item in details.metrics.items())]
    return points, details.files
