"""What runs in a Tune trial's process. A module of its own: the process imports neither MLflow nor the report.

A process trains one trial, or several of equal shapes at once (`uml_core.training.packs`). Each leaves its result and
weights in the sweep's folder as soon as it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from ray import tune

from pipelines.ray_train.checkpoints import ReportPace
from pipelines.run_data import build_data
from pipelines.stores import Tables
from pipelines.tune.encoder_trial import TrialCheckpoints, run_encoder_trial
from pipelines.tune.folder import (
    OnEvaluation,
    SweepFolder,
    TrialResult,
    assignments_of,
    described,
    finished_result,
    progress_report,
)
from uml_core.config import Experiment, hash_of
from uml_core.config.used_by import deciding
from uml_core.errors import InputError
from uml_core.evaluation.outcome import evaluation_points
from uml_core.gradients.ranks import RankContext
from uml_core.tracking.records import MetricPoint
from uml_core.training.packs import shapes_of, train_together
from uml_core.training.run import Evaluation, TrainingRun

OnEnd = Callable[[int, TrialResult, dict[str, Any] | None], None]


def train_trial(config: dict[str, Any], *, tables: Tables, experiment: Experiment, folder_uri: str) -> None:
    """Train a Tune trial's trials, write each one's result and weights, report that all are done."""
    torch.set_num_threads(1)
    assignments, folder = assignments_of(config), SweepFolder(folder_uri)
    trials = [experiment.override(assignment.overrides) for assignment in assignments]
    device = "cuda" if experiment.tune.gpus_per_trial else "cpu"
    on_evaluation = None if experiment.tune.stopping == "none" else _report
    results: list[TrialResult] = []

    def write(index: int, result: TrialResult, state: dict[str, Any] | None) -> None:
        folder.write(assignments[index].key, described(result, assignments[index]), state=state)
        results.append(result)

    if trials[0].model.backbone == "frozen":
        run_trials(trials, tables, device=device, on_evaluation=on_evaluation, on_end=write)
    else:  # trains alone
        checkpoints = TrialCheckpoints(folder, assignments[0].key, ReportPace.start(trials[0].train))
        place = RankContext(torch.device(device))
        write(0, *run_encoder_trial(trials[0], tables, checkpoints, place=place, on_evaluation=on_evaluation))
    first = results[0]  # schedulers and searches that look at what is reported have trials of their own
    reported = {"val_accuracy": first.val_accuracy, "val_nll": first.val_nll, "cost": first.cost}
    tune.report({**reported, "step": experiment.train.max_steps})


def run_trials(
    experiments: Sequence[Experiment],
    tables: Tables,
    *,
    device: str = "cpu",
    on_evaluation: OnEvaluation | None = None,
    on_end: OnEnd,
) -> None:
    """Train some trials; what the user did wrong becomes a failed result without state.

    Args:
        experiments: of the trials; several must have one `pack_label`.
        tables: every corpus of the experiments.
        device: where to train.
        on_evaluation: is called between evaluations of a trial that trains alone.
        on_end: takes a trial's place among the experiments, its result and its state.
    """
    points: dict[int, list[MetricPoint]] = {index: [] for index in range(len(experiments))}
    for pack in _packs(experiments, tables, device, on_end):
        place_of = {id(run): index for index, run in pack.items()}

        def take(run: TrainingRun, evaluation: Evaluation, place_of: Mapping[int, int] = place_of) -> None:
            index = place_of[id(run)]
            points[index] += evaluation_points(run, evaluation)
            if run.progress.finished:
                on_end(index, finished_result(run, points[index]), run.result_state())
            elif on_evaluation is not None:
                on_evaluation(run, evaluation)

        failures = _train(list(pack.values()), take)
        for index, failure in zip(pack, failures, strict=True):
            if failure is not None:
                on_end(index, TrialResult.failed(str(failure)), None)


def _train(runs: Sequence[TrainingRun], on_evaluation: OnEvaluation) -> list[InputError | None]:
    """Train runs to their ends, together where there are several; returns what ended each."""
    if len(runs) > 1:
        return train_together(runs, on_evaluation)
    try:
        for evaluation in runs[0].evaluations():
            on_evaluation(runs[0], evaluation)
    except InputError as error:
        return [error]
    return [None]


def _packs(
    experiments: Sequence[Experiment], tables: Tables, device: str, on_end: OnEnd
) -> Iterator[dict[int, TrainingRun]]:
    """Yield runs of equal shapes by their places; trials of equal data share it, and with it their batches."""
    packs: dict[object, dict[int, TrainingRun]] = {}
    shared: dict[str, Any] = {}
    for index, experiment in enumerate(experiments):
        key = hash_of(deciding(experiment, "rows"))
        try:
            if key not in shared:
                shared[key] = build_data(experiment, tables)
            run = TrainingRun(experiment, shared[key], device=device)
        except InputError as error:
            on_end(index, TrialResult.failed(str(error)), None)
            continue
        packs.setdefault(shapes_of(run) if len(experiments) > 1 else None, {})[index] = run
    yield from packs.values()


def _report(run: TrainingRun, evaluation: Evaluation) -> None:
    """Tell the scheduler how a trial does; where it stops the trial, this call does not return."""
    tune.report(progress_report(run, evaluation))
