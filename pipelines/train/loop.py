"""A training run from evaluation to evaluation, reported by wall time; in this process, or on each Ray Train worker.

In: a `TrainingRun`. Out: reports of metrics, as often as `train.report_every_s` and `train.report_share` say.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

from pipelines.ray_train.checkpoints import ReportPace
from pipelines.train.bar import TrainingState
from uml_core.config import Experiment
from uml_core.data.training_data import TrainingData
from uml_core.evaluation.outcome import evaluation_points
from uml_core.tracking.records import MetricPoint
from uml_core.training.run import TrainingRun

LARGE_BATCH = 512  # samples per worker from which several threads pay


def num_threads(experiment: Experiment, local_workers: int) -> int:
    """One thread for small batches, whose products are too small to share (measured); else this worker's share."""
    is_head_alone = experiment.objective == "supervised" and experiment.model.backbone == "frozen"
    is_solved = experiment.optim.name == "lbfgs"  # on all rows at once
    if is_head_alone and not is_solved and experiment.train.batch_size // experiment.train.num_workers < LARGE_BATCH:
        return 1
    return max(1, (os.cpu_count() or 1) // local_workers)


def train_and_report(
    run: TrainingRun,
    started_at: float,
    report: Callable[[list[MetricPoint], TrainingState], None],
    show: Callable[[TrainingState], None],
) -> None:
    """Train a run to its end; metrics are collected and reported every so often, the same times on all ranks.

    Args:
        run: what is trained; one that is finished is left as it is.
        started_at: when the run began, `pipelines.timings`, in seconds since 1970.
        report: called with the metrics since the last report, and at the end.
        show: called at every evaluation.
    """
    # Of workers there may be another number after a loss.
    points = [MetricPoint("perf/workers", run.ranks.world_size, run.progress.step)]
    first, first_step, began = run.progress.step == 0, run.progress.step, time.monotonic()
    pace = ReportPace.start(run.experiment.train)
    for evaluation in run.evaluations():
        if first:
            # Reached one evaluation after the first step, so that the loop itself need not look at the clock.
            seconds = time.time() - started_at - run.progress.train_s
            points.append(MetricPoint("perf/time_to_first_step_s", seconds, evaluation.step))
            first = False
        points += evaluation_points(run, evaluation)
        steps_per_s = (evaluation.step - first_step) / max(time.monotonic() - began, 1e-9)
        state = TrainingState(
            evaluation.step, steps_per_s, evaluation.losses, evaluation.val_accuracy, _found_in_rows(run)
        )
        show(state)
        if run.progress.finished or any(run.ranks.from_rank_zero(pace.is_due())):  # a report is a barrier
            points.append(MetricPoint("perf/report_share", pace.spent_share, evaluation.step))
            with pace.reporting():
                report(points, state)
            points = []


def _found_in_rows(run: TrainingRun) -> Sequence[str]:
    """What only who reads the rows can warn of."""
    return run.data.found_in_embeddings if isinstance(run.data, TrainingData) else run.data.warnings()
