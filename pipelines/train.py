"""Store to shared-weight model (Ray Train).

In: an embedded experiment. Out: an MLflow run with metrics, weights and the target model; test accuracy, measured once.

    python -m pipelines.train examples/demo.yaml
    python -m pipelines.train examples/demo.yaml train.twin=true      # the matched unimodal baseline beside it

Workers run `pipelines.train_loop.train_loop_per_worker`; Train's controller writes what they report to MLflow.
A killed run, started again with the same line, goes on from its last checkpoint; a finished one starts a new run.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import psutil
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer

from pipelines.attempts import Attempt, open_attempt
from pipelines.embed import corpus_fingerprints, embedding_precision
from pipelines.runtime import Summary, experiment_parser, num_gpus, ray_session, step_main
from pipelines.train_loop import load_state, load_tables, train_loop_per_worker
from uml_core.config import Experiment, TrackingConfig
from uml_core.corpora.training_data import TrainingData, build_training_data
from uml_core.errors import InputError
from uml_core.results import RunOutcome, measure_outcome, save_weights
from uml_core.serving import TargetPredictor
from uml_core.store import CorpusTable
from uml_core.tracking import MLflowTracker, open_experiment, start_run
from uml_core.training import TrainingRun

logger = logging.getLogger(__name__)

STATE_FILE = "state.pt"


def main(argv: list[str] | None = None) -> int:
    """Train one experiment, and its unimodal twin where train.twin is set."""
    parser = experiment_parser("train", description="Train the shared-weight model on an embedded experiment.")
    return step_main(parser, lambda experiment, _: run(experiment), argv)


def run(experiment: Experiment) -> Summary:
    """Train the experiment (and its twin); returns validation and test accuracy."""
    outcome = train_once(experiment)
    lines = [describe(experiment, outcome)]
    results = outcome.as_json()
    if experiment.train.twin and run_kind(experiment) == "uml":
        twin = train_once(experiment.unimodal_twin())
        lines.append(describe(experiment.unimodal_twin(), twin))
        results["twin"] = twin.as_json()
        if outcome.test_accuracy is not None and twin.test_accuracy is not None:
            difference = 100 * (outcome.test_accuracy - twin.test_accuracy)
            results["test_difference_points"] = round(difference, 3)
            lines.append(
                f"difference on test: {difference:+.1f} points with one seed; "
                "python -m pipelines.tune EXPERIMENT.yaml --space controls measures it over seeds, with controls"
            )
    return Summary("\n".join(lines), results)


def run_kind(experiment: Experiment) -> str:
    """Return the tag uml.kind: uml where an auxiliary corpus takes part in a step or in the head, else unimodal."""
    active = [name for name in experiment.auxiliaries if experiment.loss_weight(name) and experiment.batch_ratio(name)]
    initialised = experiment.model.head_init == "zero_shot" and experiment.auxiliaries
    return "uml" if active or initialised else "unimodal"


def describe(experiment: Experiment, outcome: RunOutcome) -> str:
    """Return one line on a finished run."""
    test = "no test split" if outcome.test_accuracy is None else f"test {100 * outcome.test_accuracy:.1f} %"
    return (
        f"{run_kind(experiment):<9} val {100 * outcome.val_accuracy:.1f} %, {test}, best at step {outcome.best_step} "
        f"of {outcome.steps}; {outcome.steps_per_s:.0f} steps/s; MLflow run {outcome.run_id}"
    )


def store_tables(experiment: Experiment) -> dict[str, CorpusTable]:
    """Read every corpus of an experiment from the store."""
    return load_tables(experiment, corpus_fingerprints(experiment))


def train_once(experiment: Experiment) -> RunOutcome:
    """Train one experiment to its end under Ray Train and log it; resumes where a killed run stopped."""
    data = build_training_data(experiment, store_tables(experiment))  # the user's mistakes surface here, before Ray
    for line in data.warnings():
        logger.warning("%s", line)
    open_experiment(experiment.tracking, experiment.name)
    attempt = open_attempt(experiment)
    tracker = _open_run(experiment, attempt)
    try:
        with ray_session():
            state = _fit(experiment, attempt, tracker.run_id)
        outcome = _log_outcome(experiment, data, state, tracker)
    except InputError:
        tracker.finish("FAILED")
        attempt.finish()
        raise
    tracker.finish()
    attempt.finish()
    return outcome


def _open_run(experiment: Experiment, attempt: Attempt) -> MLflowTracker:
    if attempt.run_id is not None:
        return MLflowTracker(experiment.tracking, attempt.run_id)
    kind = run_kind(experiment)
    tracker = start_run(experiment, name=kind, kind=kind, tags=provenance_tags(experiment))
    tracker.log_text(experiment.to_yaml(), "experiment.yaml")
    attempt.begin(tracker.run_id)
    return tracker


def provenance_tags(experiment: Experiment) -> dict[str, str]:
    """Return the tags that say which store and which code a run comes from."""
    fingerprints = ",".join(f"{corpus}={value}" for corpus, value in corpus_fingerprints(experiment).items())
    return {"uml.store_fingerprint": fingerprints, "git.commit": _git_commit()}


def _git_commit() -> str:
    head = Path(__file__).parent.parent / ".git" / "HEAD"
    if not head.is_file():
        return "unknown"  # a job's uploaded copy has no repository
    text = head.read_text().strip()
    if not text.startswith("ref: "):
        return text
    reference = head.parent / text.removeprefix("ref: ")
    return reference.read_text().strip() if reference.is_file() else "unknown"


def _fit(experiment: Experiment, attempt: Attempt, run_id: str) -> dict[str, Any]:
    """Run Ray Train; returns the state of the last checkpoint. Raises InputError for what a worker found wrong."""
    settings = experiment.train
    use_gpu = num_gpus() > 0 if settings.use_gpu == "auto" else settings.use_gpu
    if use_gpu and num_gpus() < settings.workers:
        raise InputError(
            f"train.workers is {settings.workers} with train.use_gpu, but the cluster has {num_gpus()} GPUs; "
            "lower train.workers or set train.use_gpu=false"
        )
    trainer = TorchTrainer(
        train_loop_per_worker,
        train_loop_config={
            "experiment": experiment.model_dump(mode="json"),
            "fingerprints": corpus_fingerprints(experiment),
            "started_at": psutil.Process().create_time(),
        },
        scaling_config=ScalingConfig(num_workers=settings.workers, use_gpu=use_gpu),
        run_config=RunConfig(
            name=attempt.name,
            storage_path=attempt.storage_path,
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(max_failures=3),
            callbacks=[MLflowCallback(experiment.tracking, run_id)],
        ),
    )
    result = trainer.fit()
    if "input_error" in (result.metrics or {}):
        raise InputError(result.metrics["input_error"])
    with result.checkpoint.as_directory() as directory:
        return load_state(Path(directory))


class MLflowCallback(UserCallback):
    """Writes what rank 0 reports to the MLflow run, from Train's controller."""

    def __init__(self, tracking: TrackingConfig, run_id: str) -> None:
        self._tracking, self._run_id = tracking, run_id

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        """Log the points that were collected since the last report."""
        MLflowTracker(self._tracking, self._run_id).log_metrics(metrics[0].get("points", []))


def _log_outcome(
    experiment: Experiment, data: TrainingData, state: dict[str, Any], tracker: MLflowTracker
) -> RunOutcome:
    """Measure test accuracy once, with the model that validated best, and log it with weights and target model."""
    run = TrainingRun(experiment, data)
    run.load_result(state)
    outcome = measure_outcome(run, tracker.run_id)
    tracker.log_metrics(outcome.points())
    with tempfile.TemporaryDirectory() as directory:
        tracker.log_artifact(save_weights(run.model, Path(directory)), "weights")
        predictor = TargetPredictor.of(experiment, run.model, data.classes, precision=embedding_precision(experiment))
        outcome.model_uri = tracker.log_predictor(predictor, Path(directory) / "predictor")
    return outcome


if __name__ == "__main__":
    raise SystemExit(main())
