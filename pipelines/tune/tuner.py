"""A sweep's trials under Ray Tune: which come next, which end early, and what is done as they end.

A trial is stopped by rivals of its own group alone: an arm is never stopped because another arm does better. A module
of its own: Ray Tune takes a second to import, and a sweep of a few heads in closed form does without.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import cloudpickle, tune
from ray.exceptions import RayTaskError
from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher

from pipelines.metrics import StepMetrics
from pipelines.progress import StepProgress
from pipelines.ray_session import num_cpus, num_gpus, own_interrupts
from pipelines.stores import Tables
from pipelines.timings import timed
from pipelines.tune.folder import Assignment, SweepFolder, TrialResult
from pipelines.tune.log import TrialLog
from pipelines.tune.proposals import Proposals, trial_resources, trials_shown
from pipelines.tune.trial import train_trials
from uml_core.config import Experiment, TuneConfig
from uml_core.files import paths
from uml_core.files.outages import outage_of
from uml_core.store.corpus_store import open_filesystem
from uml_core.sweeps.space import GroupName

logger = logging.getLogger(__name__)

STOPPING_METRIC = "val_accuracy"
# What Ray Tune copies from the driver's environment into its trials', which Ray logs; nodes have their own.
STORAGE_KEYS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"}
MAX_LOSSES = 3  # of the processes of a trial; those of preempted nodes do not count
GRACE_SHARE, REDUCTION = 0.1, 3  # of max_steps before a trial may be stopped; ASHA keeps a third at every rung


@timed("train")
def train_under_tune(
    experiment: Experiment, proposals: Proposals, tables: Tables, folder: SweepFolder, log: TrialLog
) -> None:
    """Run the trials that are left under Ray Tune, in as many processes at once as the cluster has room for."""
    resources, at_once = trial_resources(experiment.tune, cpus=num_cpus(), gpus=num_gpus())
    learns = experiment.tune.search == "tpe"
    trainable = tune.with_parameters(train_trials, tables=dict(tables), experiment=experiment, folder_uri=folder.uri)
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Tune's own table is printed even at verbose=0; we have a bar
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # nobody reads Tune's five files a trial
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(
        logging.ERROR
    )  # which warns that there are none
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")  # tracebacks; `TrialCallback` says it in a line
    ENV_VARS_TO_PROPAGATE.difference_update(STORAGE_KEYS)  # else Ray writes them into the logs of the nodes
    storage, path = open_filesystem(paths.join(paths.parent(folder.uri), "trials-ray"))
    with trials_shown(proposals) as shown:
        tuner = tune.Tuner(
            tune.with_resources(trainable, resources),
            tune_config=tune.TuneConfig(
                search_alg=SweepSearcher(proposals, processes=at_once),
                scheduler=build_scheduler(experiment),
                num_samples=proposals.num_left,  # at most: one of Tune's trials may be several of ours
                reuse_actors=True,  # a process that imports torch takes seconds to start, most trials less
                # As many as there is room for, also on nodes that join; a search learns from each before the next.
                max_concurrent_trials=at_once if learns else experiment.tune.max_concurrent_trials,
            ),
            run_config=tune.RunConfig(
                storage_path=path,
                storage_filesystem=storage,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=MAX_LOSSES),
                callbacks=[TrialCallback(proposals, log, folder, shown, StepMetrics("tune", experiment.name))],
            ),
        )
        with own_interrupts():
            tuner.fit()


class SweepSearcher(Searcher):
    """Hands proposals to Ray Tune: one of its trials trains one or several of ours.

    Tune stores nothing of it and reports no results to it: both go by way of the sweep's folder.
    """

    def __init__(self, proposals: Proposals, *, processes: int) -> None:
        super().__init__(metric=STOPPING_METRIC, mode="max")
        self._proposals, self._processes = proposals, processes

    def suggest(self, trial_id: str) -> Any:
        pack = self._proposals.next_pack(self._processes)
        if not pack:
            return Searcher.FINISHED
        return {"trials": [Assignment.of(spec) for spec in pack]}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass


class GroupedScheduler(FIFOScheduler):
    """One of Ray Tune's schedulers for each group: it decides about the group's trials as if there were no others."""

    def __init__(self, settings: TuneConfig, max_steps: int) -> None:
        super().__init__()
        self._settings, self._max_steps = settings, max_steps
        self._schedulers: dict[GroupName, TrialScheduler] = {}

    def _scheduler(self, trial: Any) -> TrialScheduler:
        group = trial.config["trials"][0].group
        if group not in self._schedulers:
            self._schedulers[group] = _stopping_rule(self._settings, self._max_steps)
        return self._schedulers[group]

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._scheduler(trial).on_trial_add(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self._scheduler(trial).on_trial_error(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return self._scheduler(trial).on_trial_result(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self._scheduler(trial).on_trial_complete(tune_controller, trial, result)


def _stopping_rule(settings: TuneConfig, max_steps: int) -> TrialScheduler:
    grace = max(1, round(GRACE_SHARE * max_steps))
    if settings.stopping == "asha":
        return AsyncHyperBandScheduler(
            time_attr="step",
            metric=STOPPING_METRIC,
            mode="max",
            max_t=max(max_steps, grace + 1),
            grace_period=grace,
            reduction_factor=REDUCTION,
            stop_last_trials=False,  # one that reaches max_t ends by itself, and then has a result
        )
    return MedianStoppingRule(
        time_attr="step",
        metric=STOPPING_METRIC,
        mode="max",
        grace_period=grace,
        min_time_slice=float("inf"),  # never pause: a paused trial would begin anew
    )


def build_scheduler(experiment: Experiment) -> TrialScheduler:
    """What decides whether a trial goes on: tune.stopping."""
    if experiment.tune.stopping == "none":
        return FIFOScheduler()
    return GroupedScheduler(experiment.tune, experiment.train.max_steps)


class TrialCallback(tune.Callback):
    """Logs trials as Ray Tune ends them, lets the search learn from them, and counts them."""

    def __init__(
        self, proposals: Proposals, log: TrialLog, folder: SweepFolder, shown: StepProgress, metrics: StepMetrics
    ) -> None:
        self._proposals, self._log, self._folder, self._shown, self._metrics = proposals, log, folder, shown, metrics

    def __getstate__(self) -> dict[str, Any]:
        """Leave nothing for Tune to store beside the sweep: our folder is what a sweep resumes from."""
        return {}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Log results from the sweep's folder; a trial that the scheduler stopped has left none there."""
        self._log_results(trial, lambda: TrialResult.cut_short(trial.last_result))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say that trials raised an error, or that their process was lost; Tune starts another either way."""
        self._raise_outage(trial)
        if isinstance(_error_of(trial), RayTaskError):  # of the code; its trials are recorded, as failed
            logger.warning("trials of the sweep raised an error (%s)", _cause(trial))
        else:
            logger.warning("a process of the sweep was lost; its trials go on in another (%s)", _cause(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record the trials of processes that died again and again, but for those that had ended; the sweep goes on."""
        self._raise_outage(trial)
        logger.warning("trials have failed: %s", _cause(trial))
        self._log_results(trial, lambda: TrialResult.failed(_cause(trial)))

    def _raise_outage(self, trial: Any) -> None:
        """End the sweep where storage was waited for in vain: no fault of the trial, which the same line trains."""
        error = _error_of(trial)
        if error is not None and (outage := outage_of(error)) is not None:
            raise outage

    def _log_results(self, trial: Any, otherwise: Callable[[], TrialResult]) -> None:
        """Log the trials of a Tune trial; one that left no result is given another, which is written for it."""
        for assignment in trial.config["trials"]:
            result = self._folder.read(assignment.key)
            if result is None:
                result = self._folder.write(assignment, otherwise(), state=None)
            self._proposals.tell(assignment.key, result)
            self._log.add(assignment.key, result)
            self._metrics.count("uml_trials", 1, outcome=result.outcome)  # a trial's process may end before it exports
            self._shown.adds()


def _error_of(trial: Any) -> Exception | None:
    """What ended a Tune trial's process last, from the driver's own file: get_pickled_error() reads storage's copy.

    Tune copies it there with the state of the whole sweep, seconds to minutes after its callbacks.
    """
    file = trial.pickled_error_file
    if file is None or not Path(file).exists():
        return None
    error: Exception = cloudpickle.loads(Path(file).read_bytes())
    return error


def _cause(trial: Any) -> str:
    text = str(_error_of(trial) or "the trial's process died")
    return text.strip().splitlines()[-1].strip()[:300]
