"""Sweeps over a space from tune_spaces/ (Ray Tune).

In: an embedded experiment and a space. Out: one MLflow run for the sweep with a nested run a trial, and a verdict.

    python -m pipelines.tune examples/demo.yaml --space controls
    python -m pipelines.tune examples/demo.yaml --space mixing_ratio --trials 20

Trials on embeddings are plain Tune functions in reused processes; the tables lie in Ray's object store, shared without
copying. A trial writes its result and weights into the sweep's folder in one rename each: a killed sweep, started again
with the same line (or --resume), runs only what is missing. Selection looks at validation; test is measured afterwards.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ray import tune
from tqdm import tqdm

from pipelines.attempts import Attempt, open_attempt
from pipelines.provenance import provenance_tags
from pipelines.runtime import Summary, experiment_parser, num_cpus, ray_session, step_main
from pipelines.stored import Tables, build_data, corpus_fingerprints, load_tables
from pipelines.trial_loop import train_trial
from pipelines.trial_results import SweepFolder, TrialResult
from tune_spaces import Space, TrialSpec, load_space, trials_of
from uml_core.analysis.raw_rows import words_per_row
from uml_core.config import Experiment, hash_of
from uml_core.errors import InputError, listing
from uml_core.reporting.collect import EXCHANGE_RATE
from uml_core.reporting.exchange import exchange_of_sweep
from uml_core.reporting.verdict import sweep_verdict
from uml_core.results import RunOutcome, measure_outcome
from uml_core.runs import MetricPoint
from uml_core.tracking import MLflowTracker, experiment_runs, open_experiment, start_run
from uml_core.training import TrainingRun

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Run one sweep."""
    parser = experiment_parser("tune", description="Sweep how modalities are mixed, with paired seeds and controls.")
    parser.add_argument("--space", required=True, help="a space of tune_spaces/ (controls, mixing_ratio), or a file")
    parser.add_argument("--trials", type=int, default=None, metavar="N", help="at most N trials, the same per arm")
    parser.add_argument("--resume", action="store_true", help="go on with a killed sweep; fails if there is none")
    return step_main(parser, _step, argv)


def _step(experiment: Experiment, arguments: argparse.Namespace) -> Summary:
    return run(experiment, arguments.space, max_trials=arguments.trials, resume=arguments.resume)


def run(experiment: Experiment, space_name: str, *, max_trials: int | None = None, resume: bool = False) -> Summary:
    """Run a sweep to its end: train what is missing, select on validation, measure test once, say what it shows."""
    if experiment.model.backbone != "frozen":
        raise InputError(
            f"model.backbone is {experiment.model.backbone}, and sweeps train heads on stored embeddings; "
            "set model.backbone=frozen, or run python -m pipelines.train for each setting"
        )
    space = load_space(space_name, experiment)
    specs = trials_of(space, experiment, max_trials=max_trials)
    fingerprints = corpus_fingerprints(experiment)
    tables = load_tables(experiment, fingerprints)
    _check_data(specs, tables)
    open_experiment(experiment.tracking, experiment.name)
    attempt = open_attempt(experiment, "tune", hash_of([experiment.config_hash, sorted(spec.key for spec in specs)]))
    if resume and attempt.run_id is None:
        raise InputError("--resume: no unfinished sweep of this experiment and space; run the line without --resume")
    started = time.perf_counter()
    parent = _open_sweep(experiment, space, space_name, attempt, provenance_tags(fingerprints))
    folder = SweepFolder(f"{attempt.storage_path}/{attempt.name}/trials")
    log = TrialLog(experiment, parent.run_id, specs, provenance_tags(fingerprints))
    log.catch_up(folder)
    _run_missing(experiment, specs, tables, folder, log)
    failed = [spec.key for spec in specs if (result := folder.read(spec.key)) is None or result.error]
    _check_failures(experiment, specs, failed, folder, parent)
    selected = select(specs, folder)
    for spec in selected:
        log.mark_selected(spec, measure_selected(spec, tables, folder))
    wall_s = time.perf_counter() - started
    return _finish(experiment, parent, attempt, space_name, counts=(len(specs), len(failed)), wall_s=wall_s)


def _check_data(specs: Sequence[TrialSpec], tables: Tables) -> None:
    """Let the user's mistakes surface before anything starts: the first trial of every arm must find its data."""
    seen: set[str] = set()
    for spec in specs:
        if spec.arm not in seen:
            seen.add(spec.arm)
            build_data(spec.experiment, tables)


def _open_sweep(
    experiment: Experiment, space: Space, space_name: str, attempt: Attempt, provenance: Mapping[str, str]
) -> MLflowTracker:
    if attempt.run_id is not None:
        return MLflowTracker(experiment.tracking, attempt.run_id)
    tags = {
        "uml.space": space_name,
        "uml.question": space.question,
        "uml.baseline": space.baseline,
        "uml.headline": space.headline,
        **provenance,
    }
    parent = start_run(experiment, name=space_name, kind="sweep", tags=tags)
    parent.log_text(experiment.to_yaml(), "experiment.yaml")
    if space_name == EXCHANGE_RATE:
        words = words_per_row(experiment)  # the report reads MLflow alone
        parent.log_metrics([MetricPoint(f"data/mean_words/{corpus}", count) for corpus, count in words.items()])
    attempt.begin(parent.run_id)
    return parent


def _run_missing(
    experiment: Experiment,
    specs: Sequence[TrialSpec],
    tables: Tables,
    folder: SweepFolder,
    log: TrialLog,
) -> None:
    """Run the trials whose results are not in the folder yet, as many at once as there are CPUs."""
    missing = {spec.key: spec.experiment.model_dump(mode="json") for spec in specs if folder.read(spec.key) is None}
    if not missing:
        return
    os.environ.setdefault(
        "RAY_AIR_NEW_OUTPUT", "0"
    )  # our own bar and summary; Tune's table is printed even at verbose=0
    with ray_session(), tqdm(total=len(specs), initial=len(specs) - len(missing), unit="trial", file=sys.stderr) as bar:
        trainable = tune.with_parameters(train_trial, tables=dict(tables), experiments=missing, folder_uri=folder.uri)
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": 1}),
            param_space={"key": tune.grid_search(list(missing))},
            tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=num_cpus()),
            run_config=tune.RunConfig(
                storage_path=folder.ray_storage, verbose=0, callbacks=[TrialCallback(log, folder, bar)]
            ),
        )
        tuner.fit()


class TrialCallback(tune.Callback):
    """Logs a trial to MLflow as it ends, from the driver, and moves the progress bar."""

    def __init__(self, log: TrialLog, folder: SweepFolder, bar: tqdm) -> None:
        self._log, self._folder, self._bar = log, folder, bar

    def __getstate__(self) -> dict[str, Any]:
        """Leave nothing for Tune to store beside the sweep: our folder is what a sweep resumes from."""
        return {}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Log the trial's result from the sweep's folder."""
        key = trial.config["key"]
        result = self._folder.read(key)
        assert result is not None, f"trial {key} ended without a result"
        self._log.add(key, result)
        self._bar.update()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record a trial whose process died or raised; it does not end the sweep."""
        text = str(getattr(trial, "get_pickled_error", lambda: None)() or "the trial's process died")
        result = TrialResult.failed(text.strip().splitlines()[-1][:500])
        self._folder.write(trial.config["key"], result, state=None)
        self._log.add(trial.config["key"], result)
        self._bar.update()


class TrialLog:
    """The sweep's nested MLflow runs, one a trial, each logged once."""

    def __init__(
        self,
        experiment: Experiment,
        parent_run_id: str,
        specs: Sequence[TrialSpec],
        provenance: Mapping[str, str],
    ) -> None:
        self._experiment, self._parent = experiment, parent_run_id
        self._specs = {spec.key: spec for spec in specs}
        self._run_ids: dict[str, str] = {}
        self._tags = {"uml.selected": "false", **provenance}

    def catch_up(self, folder: SweepFolder) -> None:
        """Find the trials a killed sweep logged already, and log those it finished but did not log."""
        for record in experiment_runs(self._experiment.tracking.uri, self._experiment.name):
            if record.parent_run_id == self._parent:
                # One that is still "running" was being logged when the sweep was killed: it is logged again.
                if record.status == "RUNNING":
                    MLflowTracker(self._experiment.tracking, record.run_id).discard()
                else:
                    self._run_ids[record.tags["uml.trial"]] = record.run_id
        for key in self._specs:
            result = folder.read(key)
            if result is not None and key not in self._run_ids:
                self.add(key, result)

    def add(self, key: str, result: TrialResult) -> None:
        """Log one ended trial as a nested run."""
        spec = self._specs[key]
        tags = {**self._tags, "uml.arm": spec.arm, "uml.trial": key}
        if result.error:
            tags["uml.error"] = result.error
        name = f"{spec.arm} {spec.condition} seed={spec.experiment.seed}".replace("  ", " ")
        tracker = start_run(spec.experiment, name=name, kind="trial", tags=tags, parent_run_id=self._parent)
        tracker.log_metrics([MetricPoint(**point) for point in result.points])
        tracker.finish("FAILED" if result.error else "FINISHED")
        self._run_ids[key] = tracker.run_id

    def mark_selected(self, spec: TrialSpec, outcome: RunOutcome) -> None:
        """Log test accuracy of a selected trial."""
        tracker = MLflowTracker(self._experiment.tracking, self._run_ids[spec.key])
        tracker.log_metrics(outcome.points())
        tracker.set_tags({"uml.selected": "true"})


def select(specs: Sequence[TrialSpec], folder: SweepFolder) -> list[TrialSpec]:
    """Return the trial of every (arm, condition, seed) that validates best."""
    best: dict[tuple[str, str, int], tuple[tuple[float, float], TrialSpec]] = {}
    for spec in specs:
        result = folder.read(spec.key)
        if result is None or result.error:
            continue
        score = (result.val_accuracy, -result.val_nll)
        if spec.group not in best or score > best[spec.group][0]:
            best[spec.group] = (score, spec)
    return [spec for _, spec in best.values()]


def measure_selected(spec: TrialSpec, tables: Tables, folder: SweepFolder) -> RunOutcome:
    """Measure test and shifted test accuracy of a selected trial from its stored weights."""
    run = TrainingRun(spec.experiment, build_data(spec.experiment, tables))
    run.load_result(folder.read_state(spec.key))
    return measure_outcome(run)


def _check_failures(
    experiment: Experiment, specs: Sequence[TrialSpec], failed: list[str], folder: SweepFolder, parent: MLflowTracker
) -> None:
    if len(failed) > experiment.tune.max_failed * len(specs):
        parent.finish("FAILED")
        reasons = {result.error for key in failed if (result := folder.read(key)) is not None}
        raise InputError(
            f"{len(failed)} of {len(specs)} trials failed (tune.max_failed is {experiment.tune.max_failed:.0%}): "
            f"{listing(sorted(reason for reason in reasons if reason), limit=2)}"
        )


def _finish(
    experiment: Experiment,
    parent: MLflowTracker,
    attempt: Attempt,
    space_name: str,
    *,
    counts: tuple[int, int],
    wall_s: float,
) -> Summary:
    """Close the sweep and say what it shows."""
    num_trials, num_failed = counts
    records = experiment_runs(experiment.tracking.uri, experiment.name)
    verdict, exchange = sweep_verdict(records, parent.run_id), exchange_of_sweep(records, parent.run_id)
    findings = [] if exchange is None else [MetricPoint(*item) for item in exchange.metrics.items()]
    parent.log_metrics([MetricPoint("perf/wall_s", wall_s), MetricPoint("sweep/trials", num_trials), *findings])
    parent.set_tags({"uml.verdict": verdict.text, "uml.verdict_kind": verdict.kind})
    parent.finish()
    attempt.finish()
    text = (
        f"{space_name}: {num_trials} trials, {num_failed} failed, {wall_s:.1f} s "
        f"({3600 * num_trials / wall_s:.0f} trials/hour); MLflow run {parent.run_id}\n{verdict.text}"
    )
    if exchange is not None:
        text = "\n".join([text, *exchange.lines])
    results = {
        "run_id": parent.run_id,
        "space": space_name,
        "trials": num_trials,
        "failed": num_failed,
        "wall_s": round(wall_s, 2),
        "verdict": verdict.text,
        "verdict_kind": verdict.kind,
        **({} if exchange is None else {"exchange_rate": exchange.as_json()}),
    }
    return Summary(text, results)


if __name__ == "__main__":
    raise SystemExit(main())
