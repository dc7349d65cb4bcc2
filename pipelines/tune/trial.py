"""What runs in a process of a sweep: one trial, or several of equal shapes at once (`uml_core.training.packs`).

In: `Assignment`s, and the tables of Ray's object store. Out: each trial's result and weights, in the sweep's folder as
soon as it ends. A module of its own: the process imports neither MLflow nor the report.

A trial that trains an encoder trains alone, in one process. On its way it saves a checkpoint in the sweep's folder as
often as `train` does: a killed sweep goes on with the step, not with the trial. What a process has listed and decoded
of the pictures it keeps for the trials that come after.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from pipelines.raw_sources import RawSources
from pipelines.ray_train.checkpoints import ReportPace
from pipelines.run_data import SharedData, build_data
from pipelines.stores import Tables
from pipelines.tune.folder import Assignment, SweepFolder, TrialResult
from uml_core.config import Experiment
from uml_core.errors import InputError
from uml_core.evaluation.outcome import evaluation_points, outcome_points
from uml_core.files.outages import outage_of
from uml_core.tracking.records import MetricPoint
from uml_core.training.packs import shapes_of, train_together
from uml_core.training.run import Evaluation, TrainingRun

logger = logging.getLogger(__name__)

State = dict[str, Any]
OnEvaluation = Callable[[TrainingRun, Evaluation], None]
OnEnd = Callable[[int, TrialResult, State | None], None]


def train_trials(config: dict[str, Any], *, tables: Tables, experiment: Experiment, folder_uri: str) -> None:
    """Be what Ray Tune calls a trial: train those of ours that it was assigned, and report that all are done."""
    from ray import tune  # it takes a second, and the driver, which solves heads, needs none of it
    from ray.tune.result import DONE

    torch.set_num_threads(1)  # as many processes as CPUs train side by side; none of them does anything else
    folder = SweepFolder(folder_uri)
    before = [(assignment, folder.read(assignment.key)) for assignment in config["trials"]]
    results = [result for _, result in before if result is not None]  # of a process that was lost among them
    assignments: list[Assignment] = [assignment for assignment, result in before if result is None]
    trials = [experiment.override(assignment.overrides) for assignment in assignments]
    device = "cuda" if experiment.tune.gpus_per_trial else "cpu"
    # A report waits for the driver: without a scheduler that decides by it, a trial makes none on its way.
    on_evaluation = None if experiment.tune.stopping == "none" else _report

    def write(index: int, result: TrialResult, state: State | None) -> None:
        results.append(folder.write(assignments[index], result, state=state))

    try:
        if trials and trials[0].model.backbone == "frozen":
            train_heads(trials, SharedData(tables), device=device, on_evaluation=on_evaluation, on_end=write)
        elif trials:
            key = assignments[0].key
            write(0, *train_encoder(trials[0], tables, folder, key, device=device, on_evaluation=on_evaluation))
    except Exception as error:  # of ours: another process, which Tune starts, would come to the same
        for assignment in assignments if outage_of(error) is None else ():  # which the same line trains
            if folder.read(assignment.key) is None:
                folder.write(assignment, TrialResult.failed(_reason(error)), state=None)
        raise
    first = results[0]  # schedulers and searches that look at what is reported have trials of their own
    reported = {"val_accuracy": first.val_accuracy, "val_nll": first.val_nll, "cost": first.cost}
    # Tune asks once more, and is told that it is done then, unless it is told now; stopping rules wait for that.
    tune.report({**reported, "step": experiment.num_steps, DONE: on_evaluation is None})


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Solve and measure heads on one thread, as a trial's process does.

    Their products are too small to share: on a busy machine, threads wait for one another.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)


def train_heads(
    experiments: Sequence[Experiment],
    shared: SharedData,
    *,
    device: str = "cpu",
    on_evaluation: OnEvaluation | None = None,
    on_end: OnEnd,
) -> None:
    """Train some trials of one `pack_label` on a frozen encoder.

    `on_evaluation` is called between evaluations of a trial that trains alone, `on_end` with a trial's index among the
    experiments, its result and its state; what the user did wrong becomes a failed result without state.
    """
    points: dict[int, list[MetricPoint]] = {index: [] for index in range(len(experiments))}
    for pack in _packs(experiments, shared, device, on_end):
        index_of = {id(run): index for index, run in pack.items()}

        def collect(run: TrainingRun, evaluation: Evaluation, index_of: Mapping[int, int] = index_of) -> None:
            index = index_of[id(run)]
            points[index] += evaluation_points(run, evaluation)
            if run.progress.finished:
                on_end(index, _finished(run, points[index]), run.result_state())
            elif on_evaluation is not None:
                on_evaluation(run, evaluation)

        failures = _train(list(pack.values()), collect)
        for index, failure in zip(pack, failures, strict=True):
            if failure is not None:
                on_end(index, TrialResult.failed(_reason(failure)), None)


def _train(runs: Sequence[TrainingRun], on_evaluation: OnEvaluation) -> Sequence[Exception | None]:
    """Train runs to their ends, together where there are several; returns what ended each."""
    if len(runs) > 1:
        return train_together(runs, on_evaluation)
    try:
        for evaluation in runs[0].evaluations():
            on_evaluation(runs[0], evaluation)
    except InputError as error:
        return [error]
    except Exception as error:
        # It has a process to itself, whose end Tune reports; and an outage is no fault of the trial.
        if runs[0].experiment.num_steps or outage_of(error) is not None:
            raise
        logger.exception("a head in closed form failed")
        return [error]
    return [None]


def _reason(failure: Exception) -> str:
    """What a failed trial says: the user's mistake in its own words, ours with the error's name."""
    return str(failure) if isinstance(failure, InputError) else traceback.format_exception_only(failure)[-1].strip()


def _packs(
    experiments: Sequence[Experiment], shared: SharedData, device: str, on_end: OnEnd
) -> Iterator[dict[int, TrainingRun]]:
    """Yield runs of equal shapes by their indices; trials of equal data share it, and with it their batches.

    Heads without steps are yielded one by one, and few of their many data sets are in memory at a time.
    """
    packs: dict[object, dict[int, TrainingRun]] = {}
    for index, experiment in enumerate(experiments):
        try:
            run = TrainingRun(experiment, shared.of(experiment), device=device)
        except InputError as error:
            on_end(index, TrialResult.failed(str(error)), None)
            continue
        if experiment.num_steps:
            packs.setdefault(shapes_of(run), {})[index] = run
        else:
            yield {index: run}
    yield from packs.values()


def train_encoder(
    experiment: Experiment,
    tables: Tables,
    folder: SweepFolder,
    key: str,
    *,
    device: str = "cpu",
    on_evaluation: OnEvaluation | None = None,
) -> tuple[TrialResult, State | None]:
    """Train one trial with its encoder, from its checkpoint on; what the user did wrong becomes a failed result."""
    pace = ReportPace.start(experiment.train)
    try:
        data = _read_ahead(build_data(experiment, tables, process_sources()))
        run = TrainingRun(experiment, data, device=device)
        points: list[MetricPoint] = []
        saved = folder.read_checkpoint(key)
        if saved is not None:
            run.load_state_dict(saved["run"])
            points = [MetricPoint(**point) for point in saved["points"]]
        for evaluation in run.evaluations():
            points += evaluation_points(run, evaluation)
            if run.progress.finished:
                break
            if pace.is_due():
                with pace.reporting():
                    state = {"run": run.state_dict(), "points": [asdict(point) for point in points]}
                    folder.write_checkpoint(key, state)  # of plain values alone, which torch loads without running code
            if on_evaluation is not None:
                on_evaluation(run, evaluation)
    except InputError as error:
        return TrialResult.failed(str(error)), None
    return _finished(run, points), run.result_state()


@functools.cache
def process_sources() -> RawSources:
    """What this process has listed and decoded: Tune runs one trial after another in it."""
    return RawSources()


def _read_ahead(data: Any) -> Any:
    """Have pictures that do not fit in memory decoded by threads.

    Actors, which `train` has for this, might find no free CPU beside the processes of a sweep.
    """
    if getattr(data, "keep", True):
        return data
    from uml_core.feed.pictures import ReadAhead  # encoders take seconds

    return replace(data, open_stream=ReadAhead)


def _finished(run: TrainingRun, points: Sequence[MetricPoint]) -> TrialResult:
    """The result of a run that has come to its end, with the points of its evaluations; test is not measured."""
    assert run.best is not None
    return TrialResult(
        run.best.val_accuracy,
        run.best.val_nll,
        [*points, *outcome_points(run)],
        cost=_samples_trained_on(run),
        val_rows=len(run.data.val),
    )


def _report(run: TrainingRun, evaluation: Evaluation) -> None:
    """Report to the scheduler how a trial does; where it stops the trial, this call does not return."""
    from ray import tune

    tune.report(
        {
            "val_accuracy": evaluation.val_accuracy,
            "val_nll": evaluation.val_nll,
            "cost": _samples_trained_on(run),
            "train_s": run.progress.train_s,
            "step": evaluation.step,
        }
    )


def _samples_trained_on(run: TrainingRun) -> float:
    """The samples of all corpora a run has seen so far: what it costs, whatever the machine."""
    return float(sum(run.progress.samples.values()))
