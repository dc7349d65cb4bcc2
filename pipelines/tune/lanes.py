"""Which trials of a sweep run how: light ones and single-process ones in Tune's own processes, others under Ray Train.

A lane is one kind of Tune trial with what it reserves, and how many run at once. Lanes run one after another: while
trials hold workers of Ray Train, no other trial waits for the same CPUs, so none waits for ever, on any cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ray import tune
from ray.tune.schedulers import TrialScheduler

from pipelines.ray_session import num_cpus, num_gpus, ray_session
from pipelines.stores import Tables
from pipelines.tune.folder import SweepFolder
from pipelines.tune.proposals import check_gpus, scheduler_of, trial_resources
from pipelines.tune.trial import train_trial
from uml_core.config import Experiment, TrainConfig, TuneConfig
from uml_core.errors import InputError
from uml_core.sweeps.space import GroupName, Space, groups_of, product_of

# A Tune trial needs a reservation of its own. One of a byte of memory leaves every CPU, whole, to Train's workers.
NEXT_TO_NOTHING = tune.PlacementGroupFactory([{"memory": 1}])


@dataclass(frozen=True)
class Lane:
    """Trials that run in one way."""

    takes: Callable[[GroupName], bool]
    trainable: Any
    resources: Any  # what tune.with_resources takes
    concurrent: int
    scheduler: TrialScheduler
    pack_processes: int | None = None  # that share packs of heads; None: every trial trains alone


def lanes_of(
    experiment: Experiment, space: Space, tables: Tables, *, fingerprints: Mapping[str, str], folder: SweepFolder
) -> list[Lane]:
    """Return the lanes of a sweep on the cluster as it is."""
    on_workers = groups_on_workers(experiment, space)
    trainable = tune.with_parameters(train_trial, tables=dict(tables), experiment=experiment, folder_uri=folder.uri)
    resources, concurrent = trial_resources(experiment.tune, cpus=num_cpus(), gpus=num_gpus())
    lanes = [
        Lane(
            lambda group: group not in on_workers,
            trainable,
            resources,
            concurrent,
            scheduler_of(experiment),
            pack_processes=concurrent,
        ),
    ]
    if on_workers:
        from pipelines.tune.trial_on_workers import AskingScheduler, train_on_workers  # Ray Train takes a second

        trainable = tune.with_parameters(
            train_on_workers, experiment=experiment, fingerprints=dict(fingerprints), folder_uri=folder.uri
        )
        concurrent = trials_on_workers_at_once(experiment.tune, on_workers, cpus=num_cpus(), gpus=num_gpus())
        scheduler = AskingScheduler(scheduler_of(experiment), folder)
        lanes.append(Lane(on_workers.__contains__, trainable, NEXT_TO_NOTHING, concurrent, scheduler))
    return lanes


def check_resources(experiment: Experiment, space: Space) -> None:
    """Raise InputError for trials that a sweep cannot run, or the cluster cannot hold, before the sweep is opened."""
    on_workers = groups_on_workers(experiment, space)
    if not on_workers and not experiment.tune.gpus_per_trial:
        return
    with ray_session():
        trial_resources(experiment.tune, cpus=num_cpus(), gpus=num_gpus())
        trials_on_workers_at_once(experiment.tune, on_workers, cpus=num_cpus(), gpus=num_gpus())


def groups_on_workers(experiment: Experiment, space: Space) -> dict[GroupName, int]:
    """Return the groups that Ray Train trains, with the workers that their trials take at most.

    A group is of one lane as a whole: one that searches model.backbone has its frozen heads trained on workers too.

    Raises:
        InputError: a trial asks for shards, or for a number of workers that may change.
    """
    workers: dict[tuple[str, str], int] = {}
    found = {}
    for group in groups_of(space):
        arm = (group.arm.name, group.label)
        if arm not in workers:  # the seed decides nothing here
            trials = [group.spec(experiment, point).experiment for point in product_of(space.grid_of(group.arm))]
            for trial in trials:
                check_workers(trial.train)
            trains = any(trial.model.backbone != "frozen" and trial.train.workers > 1 for trial in trials)
            workers[arm] = max(trial.train.workers for trial in trials) if trains else 1
        if workers[arm] > 1:
            found[group.name] = workers[arm]
    return found


def check_workers(train: TrainConfig) -> None:
    """Raise InputError for what a trial's workers cannot be told to do."""
    for setting, given, default in (("sharding", train.sharding, "none"), ("min_workers", train.min_workers, None)):
        if given != default:
            raise InputError(
                f"train.{setting} is {given}, which python -m pipelines.train alone has: a sweep's trials are whole "
                f"models on a fixed number of workers; remove train.{setting}"
            )


def trials_on_workers_at_once(
    settings: TuneConfig, on_workers: Mapping[GroupName, int], *, cpus: int, gpus: int
) -> int:
    """Return how many trials of the most workers fit the cluster at once.

    Raises:
        InputError: not one of them does, or workers would share a GPU.
    """
    workers, wanted = max(on_workers.values(), default=1), settings.gpus_per_trial
    most = settings.max_concurrent_trials or cpus
    if workers > cpus:
        raise InputError(
            f"train.workers is {workers}, but the cluster has {cpus} CPUs, and each worker of a trial takes one; lower "
            "train.workers (1 trains several trials side by side)"
        )
    if not wanted or workers == 1:
        return min(cpus // workers, most)
    if wanted % workers:
        raise InputError(
            f"tune.gpus_per_trial is {wanted:g} with train.workers {workers}; every worker needs whole GPUs: set "
            f"tune.gpus_per_trial={workers}, or train.workers=1, where a trial may take part of one"
        )
    check_gpus(settings, wanted, gpus)
    return min(cpus // workers, most, int(gpus // wanted))
