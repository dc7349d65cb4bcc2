"""A step's training runs, each from the attempt's folder to the logged outcome; heavy to import.

A model on stored embeddings is trained here, in the process that the user started; what is distributed, and what trains
an encoder, on workers of Ray Train (`pipelines.train.on_workers`). Both go on from one another's checkpoints.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from pipelines.left_out import left_out_tag
from pipelines.progress import stage
from pipelines.ray_train.attempts import Attempt, open_attempt
from pipelines.ray_train.checkpoints import CheckpointWriter, newest_state
from pipelines.run_data import CheckedData, SharedData, divergence_message, load_data, training_tables
from pipelines.subset_files import subset_of
from pipelines.timings import CLOCK, timed
from pipelines.train.bar import TrainingBar, TrainingState
from pipelines.train.loop import num_threads, train_and_report
from pipelines.train.summary import trains_here
from uml_core.config import Experiment
from uml_core.data.sequence_data import SequenceData
from uml_core.data.training_data import TrainingData
from uml_core.errors import InputError, OutageError
from uml_core.evaluation.outcome import RunOutcome, measure_outcome, save_weights
from uml_core.gradients.batch import NonFiniteError
from uml_core.serving.predictor import Predictor
from uml_core.store.corpus_store import CorpusStore
from uml_core.store.counted_table import rest_of
from uml_core.tracking.records import MetricPoint, provenance_tags, run_kind
from uml_core.tracking.uri import without_password
from uml_core.tracking.writing import MLflowTracker, start_run
from uml_core.training.run import TrainingRun
from uml_core.transfer.start import transfer_plan

logger = logging.getLogger(__name__)
Conclusion = TypeVar("Conclusion")


@dataclass(frozen=True)
class TrainedModel:
    """What a run has come to: the model that validated best, and what was measured of it."""

    outcome: RunOutcome
    weights: Mapping[str, Tensor]
    predictor: Predictor


def train_in_turn(
    experiments: Sequence[Experiment],
    checked: CheckedData,
    conclude: Callable[[Sequence[RunOutcome]], Conclusion],
) -> Conclusion:
    """Train experiments, one after another, to their ends; resumes where a killed step stopped, in the later ones too.

    `open_experiment()` comes first. All are one step, which ends with what `conclude` makes of the outcomes: the same
    line trains them anew after that.
    """
    attempts: list[Attempt] = []
    outcomes, data = [], LoadedData()
    with contextlib.ExitStack() as held:
        try:
            for experiment in experiments:
                attempts.append(held.enter_context(open_attempt(experiment)))
                outcomes.append(_train_once(experiment, checked, data, attempts[-1]))
                CLOCK.begin_run()
        except InputError as error:
            # An outage of the tracking server, or a folder that is another run's now, leaves the step unfinished.
            if not isinstance(error, OutageError):
                _finish(attempts)
            raise
        conclusion = conclude(outcomes)
        _finish(attempts)
        return conclusion


def _train_once(experiment: Experiment, checked: CheckedData, data: LoadedData, attempt: Attempt) -> RunOutcome:
    """Train one experiment and log it; where that has been done, return what it came to."""
    if attempt.outcome is not None:
        return RunOutcome(**attempt.outcome)
    checked = checked.for_experiment(experiment)
    tracker = _open_run(experiment, attempt, checked)
    try:
        if trains_here(experiment):
            trained = _train_here(experiment, checked, data, attempt, tracker)
        else:
            from pipelines.train.on_workers import train_on_workers

            trained = TrainedModel(*train_on_workers(experiment, checked, attempt, tracker.run_id))
        outcome = _log_outcome(experiment, checked, trained, tracker)
    except InputError as error:
        if not isinstance(error, OutageError):
            tracker.finish("FAILED")
        raise
    tracker.finish()
    attempt.keep(outcome.as_json())
    return outcome


def _finish(attempts: Sequence[Attempt]) -> None:
    for attempt in attempts:
        if attempt.run_id is not None:  # else the user's mistake has kept it from beginning
            attempt.finish()


@stage("log", "opening the MLflow run")
def _open_run(experiment: Experiment, attempt: Attempt, checked: CheckedData) -> MLflowTracker:
    if attempt.run_id is not None:
        return MLflowTracker(experiment.tracking, attempt.run_id)
    kind, plan = run_kind(experiment), transfer_plan(experiment)  # weights that do not fit begin no run
    feeds = {"uml.feed": ",".join(f"{corpus}={feed}" for corpus, feed in checked.feeds.items())}
    left_out = left_out_tag(experiment, checked.fingerprints, checked.data.warnings())
    tags = provenance_tags(checked.fingerprints) | feeds | left_out
    tracker = start_run(experiment, name=kind, kind=kind, tags=tags, request=attempt.request())
    tracker.log_text(without_password(experiment).to_yaml(), "experiment.yaml")
    if plan is not None:
        logger.warning("%s Every tensor stands in transfer.md of run %s", plan.notes[0], tracker.run_id)
        tracker.log_text(plan.table(), "transfer.md")
    attempt.begin(tracker.run_id)
    return tracker


class LoadedData:
    """The data of a step's runs, whose corpora are read once: a twin has its run's rows, another seed other ones."""

    def __init__(self) -> None:
        self._shared: SharedData | None = None

    @timed("read")
    def of(self, experiment: Experiment, checked: CheckedData) -> TrainingData | SequenceData:
        """Select a run's rows. Raises InputError for the user's mistakes."""
        if "stream" in checked.feeds.values():
            from pipelines.row_sums import add_up_rows  # Ray, for these alone

            return load_data(experiment, checked.fingerprints, add_up_rows(experiment, checked))
        if self._shared is None:
            self._shared = SharedData(training_tables(experiment, checked.fingerprints), most=1)
        data: TrainingData | SequenceData = self._shared.of(experiment)
        return data


@timed("train")
def _train_here(
    experiment: Experiment, checked: CheckedData, data: LoadedData, attempt: Attempt, tracker: MLflowTracker
) -> TrainedModel:
    """Train in this process, from the last checkpoint on: processes of Ray Train take ten seconds to start."""
    run = TrainingRun(experiment, data.of(experiment, checked), device=_device(experiment))
    checkpoints = CheckpointWriter(attempt.directory, keep=experiment.train.keep_checkpoints)
    state = newest_state(attempt.directory)
    if state is not None:
        run.load_state_dict(state)

    def report(points: list[MetricPoint], _: TrainingState) -> None:
        attempt.check()
        tracker.log_metrics(points)
        if experiment.num_steps:
            checkpoints.write(run.state_dict())

    try:
        with TrainingBar(f"train {run_kind(experiment)}", experiment.num_steps) as bar, _threads(experiment):
            train_and_report(run, CLOCK.run_began, report, bar.show)
            assert run.best is not None, "it was evaluated"
            return TrainedModel(measure_outcome(run), run.best.weights, run.objective.predictor())
    except NonFiniteError as error:
        kept = "; step {1} is kept in {0}".format(*checkpoints.newest) if checkpoints.newest else ""
        raise InputError(divergence_message(error, experiment, checked.fingerprints) + kept) from None


def _device(experiment: Experiment) -> str:
    """Where this process trains; a head in closed form on the CPU. Raises InputError where there is no GPU to use."""
    has_gpu, asked = torch.cuda.is_available(), experiment.train.use_gpu
    if experiment.takes_no_step or not asked:
        return "cpu"
    if asked is True and not has_gpu:
        raise InputError("train.use_gpu is true, but torch finds no GPU on this machine; set train.use_gpu=false")
    return "cuda" if has_gpu else "cpu"


@contextlib.contextmanager
def _threads(experiment: Experiment) -> Iterator[None]:
    """Have torch use as many threads as a worker would; what comes later in this process has those of before."""
    before = torch.get_num_threads()
    if experiment.num_steps:
        torch.set_num_threads(num_threads(experiment, 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@stage("log", "writing to MLflow")
def _log_outcome(
    experiment: Experiment, checked: CheckedData, trained: TrainedModel, tracker: MLflowTracker
) -> RunOutcome:
    """Log what was measured of the model that validated best, with its weights and target model."""
    outcome = replace(trained.outcome, run_id=tracker.run_id)
    tracker.log_metrics(outcome.points())
    store = CorpusStore(experiment.store, experiment.target, checked.fingerprints[experiment.target])
    ids = (store if checked.data.labelled.counts is None else rest_of(store)).load_ids()
    tracker.log_text(subset_of(experiment, checked.data, ids), "subset.json")
    with tempfile.TemporaryDirectory() as directory:
        tracker.log_artifact(save_weights(trained.weights, Path(directory)), "weights")
        outcome.model_uri = tracker.log_predictor(trained.predictor, Path(directory) / "predictor")
    return outcome
