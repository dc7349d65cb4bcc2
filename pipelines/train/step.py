"""Store to shared-weight model.

In: an embedded experiment. Out: an MLflow run with metrics, weights and the target model; test accuracy, measured once.

    python -m pipelines.train examples/demo.yaml
    python -m pipelines.train examples/demo.yaml train.twin=true      # the matched unimodal baseline beside it
    python -m pipelines.train examples/demo.yaml train.twin=true train.seeds=5     # five pairs, and their difference
    python -m pipelines.train examples/demo.yaml model.backbone=finetune train.max_steps=200    # the image encoder too
    python -m pipelines.train examples/demo.yaml model.backbone=lora train.max_steps=200        # adapters in it alone

A killed run, started again with the same line, goes on from its last checkpoint, and what was finished of several runs
is kept; a finished line starts anew. The best checkpoint becomes a new version of the registered model,
models:/EXPERIMENT/VERSION. A model on stored embeddings is trained in this process (`pipelines.train.fit`), and Ray is
started only to add up the rows of a head in closed form that do not fit in memory. An encoder, and whatever
`train.workers` asks for, is trained by workers of Ray Train (`pipelines.train.on_workers`).
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pipelines.command_line import Summary
from pipelines.progress import loading, stage
from pipelines.run_data import CheckedData, check_data
from pipelines.train.summary import best_by_validation, by_seed, seed_runs, summary_of, trains_here
from uml_core.config import Experiment
from uml_core.config.used_by import unused_settings
from uml_core.tracking.records import run_kind
from uml_core.tracking.uri import check_tracking

if TYPE_CHECKING:
    from uml_core.evaluation.outcome import RunOutcome

logger = logging.getLogger(__name__)


def run(experiment: Experiment) -> Summary:
    """Train the experiment (seeds, twins); returns validation and test accuracy, and the paired difference."""
    runs = seed_runs(experiment)
    checked = check_data(runs[0][0])  # the user's mistakes surface here, before anything starts
    check_tracking(experiment.tracking.uri)
    for line in (*unused_settings(experiment), *checked.data.warnings()):
        logger.warning("%s", line)
    if "stream" in checked.feeds.values():
        logger.warning("%s", checked.describe_feed(experiment))
    with contextlib.ExitStack() as session:
        session.enter_context(_session(experiment, checked))
        from pipelines.train.fit import train_in_turn

        def conclude(outcomes: Sequence[RunOutcome]) -> Summary:
            session.close()  # who is killed while Ray stops has not finished: the same line would train anew
            found = by_seed(runs, outcomes)
            model = _register(experiment, best_by_validation(found).outcome)
            return summary_of(found, feeds=checked.feeds, model=model)

        return train_in_turn(list(itertools.chain(*runs)), checked, conclude)


@contextlib.contextmanager
def _session(experiment: Experiment, checked: CheckedData) -> Iterator[None]:
    """Ray, where there is something to distribute, and what the runs need."""
    adds_up = bool(experiment.solved_from) and "stream" in checked.feeds.values()
    if adds_up or not trains_here(experiment):
        from pipelines.ray_session import ray_session

        with ray_session(meanwhile=lambda: _prepare(experiment)):
            yield
        return
    _prepare(experiment)
    yield


@loading()
def _prepare(experiment: Experiment) -> None:
    """Do what takes as long as Ray's processes to start: import torch, Ray Train and MLflow, open MLflow's database."""
    if trains_here(experiment):
        from pipelines.train import fit  # noqa: F401
    else:
        from pipelines.train import on_workers  # noqa: F401
    from uml_core.tracking.writing import open_experiment

    open_experiment(experiment.tracking, experiment.name)


@stage("log", "registering the model")
def _register(experiment: Experiment, outcome: RunOutcome) -> str:
    """Register a run's model as a new version under the experiment's name; returns models:/NAME/VERSION."""
    from uml_core.tracking.writing import MLflowTracker

    tags = {"uml.kind": run_kind(experiment), "uml.config_hash": experiment.config_hash, "uml.run": outcome.run_id}
    return MLflowTracker(experiment.tracking, outcome.run_id).register_model(
        outcome.model_uri, experiment.name, tags=tags, alias=None
    )
