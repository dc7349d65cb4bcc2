"""The trials that are selected: which, by validation alone, and what they come to on test, measured afterwards, once.

In: trials' results and stored weights. Out: of each arm, condition and seed one trial; its numbers; the best of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import ray
import torch

from pipelines.ray_session import num_cpus, num_gpus
from pipelines.run_data import SharedData, build_data
from pipelines.stores import Tables
from pipelines.tune.folder import SweepFolder, TrialResult
from pipelines.tune.proposals import trial_resources
from pipelines.tune.trial import one_thread, process_sources
from uml_core.config import Experiment, parse_experiment
from uml_core.evaluation.outcome import evaluated_run
from uml_core.evaluation.registry import chosen_evaluators, measure
from uml_core.evaluation.shipping import alias_of, choose
from uml_core.models.shared_head import head_init_corpus
from uml_core.sweeps.selection import Candidate, pareto_front, selected
from uml_core.sweeps.space import GroupName, Space, TrialSpec
from uml_core.tracking.records import MetricPoint, metric_points
from uml_core.training.run import TrainingRun

Files = dict[str, bytes]
Measured = Iterator[tuple[TrialSpec, list[MetricPoint], Files]]


def select_trials(
    specs: Mapping[str, TrialSpec], results: Mapping[str, TrialResult], *, count_cost: bool
) -> tuple[list[TrialSpec], list[TrialSpec]]:
    """The selected trial of every group, and with `count_cost` those no other of its group beats in both."""
    groups: dict[GroupName, dict[str, Candidate]] = {}
    for key, result in results.items():
        if not result.error and not result.stopped:
            groups.setdefault(specs[key].group, {})[key] = result.candidate
    chosen = [selected(candidates, count_cost=count_cost) for candidates in groups.values()]
    front = [key for candidates in groups.values() if count_cost for key in pareto_front(candidates)]
    return [specs[key] for key in chosen if key is not None], [specs[key] for key in front]


def measure_trials(
    specs: Sequence[TrialSpec], tables: Tables, folder: SweepFolder, *, drawn: Collection[str]
) -> Measured:
    """Yield trials with what is measured of them on test and shifted test sets from their stored weights.

    Heads are measured here, trained encoders as Ray tasks with the resources of a trial, as they finish. Of trials
    whose keys are in `drawn`, tables and the confusion matrix as well.
    """
    heavy = [spec for spec in specs if spec.experiment.model.backbone != "frozen"]
    shared = SharedData(tables)
    with one_thread():
        for spec in specs:
            if spec not in heavy:
                data, state = shared.of(spec.experiment), folder.read_state(spec.key)
                yield spec, *measured(spec.experiment, data, state, drawn=spec.key in drawn)
    if heavy:
        yield from _on_cluster(heavy, tables, folder, drawn)


def _on_cluster(specs: Sequence[TrialSpec], tables: Tables, folder: SweepFolder, drawn: Collection[str]) -> Measured:
    resources, at_once = trial_resources(specs[0].experiment.tune, cpus=num_cpus(), gpus=num_gpus())
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
    torch.set_num_threads(1)
    experiment = parse_experiment(tree)
    data = build_data(experiment, tables, process_sources())
    return measured(experiment, data, SweepFolder(folder_uri).read_state(key), drawn=drawn)


def measured(
    experiment: Experiment, data: Any, state: dict[str, Any], *, drawn: bool
) -> tuple[list[MetricPoint], Files]:
    """What a finished trial comes to on test, and files by name; each row is encoded once."""
    device = "cuda" if experiment.model.backbone != "frozen" and experiment.tune.gpus_per_trial else "cpu"
    run = TrainingRun(experiment, data, device=device)
    run.load_result(state)
    evaluators = ("test", "shift", "classes") if drawn else ("test", "shift")
    details = measure(evaluated_run(run), chosen_evaluators(evaluators))
    return metric_points(details.metrics, run.progress.step), details.files


def count_unseen(experiment: Experiment, tables: Tables) -> int:
    """How many classes have no train row of the target (`data.classes: union`)."""
    if experiment.data.classes == "target":
        return 0
    data = build_data(experiment, tables)
    return len(data.classes) - len(np.unique(data.train[data.target].labels))


def shipped_trials(
    space: Space, chosen: Sequence[TrialSpec], results: Mapping[str, TrialResult], *, unseen: bool
) -> dict[str, TrialSpec]:
    """The trial whose model is worth using under each condition, by its label; the last one has the most shots.

    Of the arm that is shipped (`uml_core.evaluation.shipping`) the seed that validates best; where a sweep cannot say
    which arm that is, the trial that validates best of those trained without a control (no shuffled labels, no noise,
    nothing unrelated). Test accuracy has no say.
    """

    def rank(spec: TrialSpec) -> tuple[float, float]:
        return results[spec.key].val_accuracy, -results[spec.key].val_nll

    by_shots: dict[int | None, list[TrialSpec]] = {}
    for spec in chosen:
        by_shots.setdefault(spec.experiment.data.shots, []).append(spec)
    shipped = {}
    for shots in sorted(by_shots, key=lambda shots: (shots is None, shots or 0)):
        specs, val = by_shots[shots], defaultdict[str, dict[int, float]](dict)
        for spec in specs:
            val[spec.arm][spec.experiment.seed] = results[spec.key].val_accuracy
        choice = choose(space, val, unseen=unseen)
        usable = [
            spec
            for spec in specs
            if (not has_control(spec.experiment) if choice is None else spec.arm == choice.arm.name)
        ]
        if usable:
            shipped[alias_of(shots)] = max(usable, key=rank)
    return shipped


def has_control(experiment: Experiment) -> bool:
    """Whether a control takes part in training or in the head's start."""
    taking_part = set(experiment.active_auxiliaries)
    if experiment.objective == "supervised" and experiment.model.head_init == "zero_shot":
        taking_part.add(head_init_corpus(experiment))
    if experiment.model.head == "prior":
        taking_part.update(experiment.bridges)
    return any(experiment.corpora[name].control != "none" for name in taking_part)
