"""Training on workers of Ray Train: what is distributed, what trains an encoder, and all on a cluster.

Workers run `pipelines.train.worker.train_loop_per_worker`, and Train's controller writes what they report to MLflow.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError
from ray.train import CheckpointConfig, FailureConfig, Result, RunConfig, ScalingConfig
from torch import Tensor

from pipelines.ray_session import TYPE_PREFIX, await_resources, gpu_types, num_cpus, num_gpus, own_interrupts, share_of
from pipelines.ray_train.attempts import Attempt
from pipelines.ray_train.checkpoints import PREDICTOR_FOLDER, load_state, repair
from pipelines.ray_train.elastic import trainer_class
from pipelines.ray_train.faults import MistakeCallback, free_orphans, mistakes_raised
from pipelines.row_sums import add_up_rows
from pipelines.run_data import CheckedData
from pipelines.timings import CLOCK, timed
from pipelines.train.bar import TrainingBar
from pipelines.train.progress import MLflowCallback, followed
from pipelines.train.worker import train_loop_per_worker
from uml_core.config import Experiment
from uml_core.errors import InputError, listing
from uml_core.evaluation.outcome import RunOutcome
from uml_core.files.paths import one_line
from uml_core.serving.predictor import Predictor
from uml_core.serving.target_predictor import load_predictor_folder
from uml_core.store.corpus_store import open_filesystem
from uml_core.tracking.records import run_kind
from uml_core.tracking.uri import without_password

MAX_LOSSES = 3  # of workers, and of the controller, in a run

logger = logging.getLogger(__name__)


@timed("train")
def train_on_workers(
    experiment: Experiment, checked: CheckedData, attempt: Attempt, run_id: str
) -> tuple[RunOutcome, Mapping[str, Tensor], Predictor]:
    """Run Ray Train; returns what rank 0 has measured and saved. Raises InputError for what a worker found wrong."""
    settings = experiment.train
    fewest, most, cluster = settings.min_workers or settings.num_workers, settings.num_workers, experiment.cluster
    use_gpu = num_gpus(cluster.train_on) > 0 if settings.use_gpu == "auto" else settings.use_gpu
    there = await_resources("GPU" if use_gpu else "CPU", fewest, wait_s=cluster.wait_s, nodes=cluster.train_on)
    setting = "workers" if settings.min_workers is None else "min_workers"
    _check_workers(fewest, there, use_gpu=use_gpu, setting=setting)
    if use_gpu and most > 1:
        check_gpu_types(gpu_types(cluster.train_on))
    _check_streaming(experiment, checked)
    sums = add_up_rows(experiment, checked)
    storage, path = open_filesystem(attempt.storage_path)
    with tempfile.TemporaryDirectory() as folder:
        state_file = Path(folder) / "state.json"
        bar = TrainingBar(f"train {run_kind(experiment)}", experiment.num_steps)
        with bar, followed(state_file, bar), mistakes_raised():
            result = _through_losses(
                experiment,
                attempt,
                train_loop_config={
                    "experiment": without_password(experiment).model_dump(mode="json"),  # Ray Train keeps it
                    "fingerprints": dict(checked.fingerprints),
                    "sums": sums,
                    "started_at": CLOCK.run_began,
                    "run_dir": attempt.directory,
                },
                scaling_config=ScalingConfig(
                    num_workers=most if fewest == most else (fewest, most),
                    use_gpu=use_gpu,
                    resources_per_worker={"GPU" if use_gpu else "CPU": 1, **share_of(cluster.train_on)},
                    placement_strategy=cluster.placement.upper(),
                ),
                run_config=RunConfig(
                    name=attempt.name,
                    storage_path=path,
                    storage_filesystem=storage,  # ours is patient
                    checkpoint_config=CheckpointConfig(num_to_keep=settings.keep_checkpoints),
                    failure_config=FailureConfig(max_failures=MAX_LOSSES),
                    callbacks=[MLflowCallback(experiment.tracking, run_id, state_file), MistakeCallback()],
                ),
            )
    metrics = result.metrics or {}
    if "input_error" in metrics:
        kept = f"; step {metrics['good_step']} is kept in {result.checkpoint.path}" if "good_step" in metrics else ""
        raise InputError(metrics["input_error"] + kept)
    with result.checkpoint.as_directory() as checkpoint:
        weights = load_state(Path(checkpoint))["best"]["weights"]
        return RunOutcome(**metrics["outcome"]), weights, load_predictor_folder(Path(checkpoint) / PREDICTOR_FOLDER)


def _check_workers(fewest: int, there: int, *, use_gpu: bool, setting: str) -> None:
    """Raise InputError where the cluster lacks what the fewest workers need: Ray would wait for ever."""
    if there < fewest:
        kind, otherwise = ("GPU", ", train.use_gpu=false") if use_gpu else ("CPU", "")
        raise InputError(
            f"train.{setting} is {fewest}, but the cluster has {there} {kind}s, and each worker takes one; lower "
            f"train.{setting}{otherwise}, or set cluster.wait_s to the seconds in which its autoscaler adds them"
        )


def check_gpu_types(types: Mapping[str, int]) -> None:
    """Raise InputError where workers could come onto GPUs of several types: each step would wait for the slowest."""
    if len(types) > 1:
        there = listing(f"{count} of type {name}" for name, count in sorted(types.items()))
        raise InputError(
            f"train.workers would train together on GPUs of {len(types)} types ({there}), at the pace of the slowest; "
            f"name one by cluster.train_on={TYPE_PREFIX}{max(types, key=lambda name: types[name])}, or the nodes by a "
            "custom resource of theirs"
        )


def _through_losses(experiment: Experiment, attempt: Attempt, **trainer: Any) -> Result:
    """Run Ray Train to the end. It restarts lost workers itself; where its own controller is lost, it is begun anew."""
    for num_lost in range(MAX_LOSSES + 1):
        repair(attempt.directory, keep=experiment.train.keep_checkpoints)
        try:
            with own_interrupts():
                return trainer_class(trainer["scaling_config"])(train_loop_per_worker, **trainer).fit()
        except RayActorError as error:
            if num_lost == MAX_LOSSES:
                raise
            free_orphans(error.actor_id)
            logger.warning("Ray Train's controller was lost; going on from the last checkpoint (%s)", _cause(error))
    raise AssertionError("the last loss is raised")


def _cause(error: RayActorError) -> str:
    """Why an actor is lost: of one that could not start, the last line of its traceback."""
    lines = str(error).strip().splitlines()
    return lines[-1][:300] if any(line.startswith("  File ") for line in lines) else one_line(error)


def _check_streaming(experiment: Experiment, checked: CheckedData) -> None:
    """Say whether a trained encoder's rows stay in memory. Raises InputError where no CPU is left to read them."""
    if experiment.model.backbone == "frozen":
        return
    from uml_core.feed.pictures import PictureData  # encoders take seconds

    assert isinstance(checked.data, PictureData)
    logger.warning("%s", checked.data.describe(experiment))
    workers = experiment.train.num_workers
    if not checked.data.keep and workers >= num_cpus():
        raise InputError(
            f"train.workers is {workers} on {num_cpus()} CPUs, and {checked.data.noun}s that do not "
            "fit in memory are decoded beside the workers; lower train.workers, or raise pictures.memory_gib"
        )
