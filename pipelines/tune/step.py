"""Sweeps over a space from tune_spaces/ (Ray Tune).

In: an embedded experiment and a space. Out: one MLflow run for the sweep with a nested run a trial, and a verdict.

    python -m pipelines.tune examples/demo.yaml --space controls
    python -m pipelines.tune examples/demo.yaml --space mixing_ratio --trials 90
    python -m pipelines.tune examples/demo.yaml --space linear_probe --trials 180 tune.search=tpe tune.stopping=asha

Trials on embeddings are plain Tune functions in reused processes, each of which trains several of them at once
(tune.pack); the tables lie in Ray's object store, shared without copying. Trials that train an encoder on several
workers (model.backbone, train.workers) wait for Ray Train. A trial writes its result and weights into the sweep's
folder in one rename each: a killed sweep, started again with the same line (or --resume), runs only what is missing.
Selection looks at validation; test is measured afterwards, once. The best model is registered in MLflow,
models:/EXPERIMENT@best; `pipelines.predict` takes it as it is.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence

from ray import tune
from tqdm import tqdm

from pipelines.command_line import Summary, experiment_parser, step_main
from pipelines.ray_session import ray_session
from pipelines.ray_train.attempts import Attempt, open_attempt
from pipelines.run_data import build_data
from pipelines.stores import Tables, corpus_fingerprints, load_tables
from pipelines.tune.folder import SweepFolder, TrialResult
from pipelines.tune.lanes import Lane, check_resources, check_workers, lanes_of
from pipelines.tune.log import TrialCallback, TrialLog
from pipelines.tune.measuring import measure_trials
from pipelines.tune.proposals import Proposals, SweepSearcher, proposals_of
from pipelines.tune.publish import best_trial, log_subsets, log_summary, register_best, select_trials
from tune_spaces import Space, TrialSpec, available_spaces, load_space
from uml_core.analysis.raw_rows import words_per_row
from uml_core.config import Experiment, hash_of
from uml_core.errors import InputError, listing
from uml_core.reporting.collect import collect_sweep
from uml_core.reporting.exchange import exchange_section
from uml_core.reporting.verdict import verdict_of
from uml_core.sweeps.space import space_as_json
from uml_core.tracking.provenance import provenance_tags
from uml_core.tracking.reading import find_run, sweep_runs
from uml_core.tracking.records import CLASS_METRIC, SPACE_FILE, MetricPoint
from uml_core.tracking.writing import MLflowTracker, open_experiment, start_run

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Run one sweep."""
    parser = experiment_parser("tune", description="Sweep how modalities are mixed, with paired seeds and controls.")
    parser.epilog = "example: python -m pipelines.tune examples/demo.yaml --space controls tune.seeds=3"
    spaces = listing(available_spaces(), limit=20)
    parser.add_argument("--space", required=True, help=f"a space of tune_spaces/ ({spaces}), or a file of yours")
    parser.add_argument("--trials", type=int, default=None, metavar="N", help="at most N trials, the same per arm")
    parser.add_argument("--resume", action="store_true", help="go on with a killed sweep; fails if there is none")
    return step_main(parser, _step, argv)


def _step(experiment: Experiment, arguments: argparse.Namespace) -> Summary:
    return run(experiment, arguments.space, max_trials=arguments.trials, resume=arguments.resume)


def run(experiment: Experiment, space_name: str, *, max_trials: int | None = None, resume: bool = False) -> Summary:
    """Run a sweep to its end: train what is missing, select on validation, measure test once, say what it shows."""
    check_workers(experiment.train)  # before an arm's own settings get in its way
    space = load_space(space_name, experiment)
    proposals = proposals_of(space, experiment, max_trials=max_trials)
    fingerprints = corpus_fingerprints(experiment)
    tables = load_tables(experiment, fingerprints)
    known = proposals.check_specs()
    _check_data(known, tables)
    check_resources(experiment, space)
    open_experiment(experiment.tracking, experiment.name)
    identity = [experiment.config_hash, sorted(spec.key for spec in known), proposals.total]
    attempt = open_attempt(experiment, "tune", hash_of(identity))
    if resume and attempt.run_id is None:
        raise InputError("--resume: no unfinished sweep of this experiment and space; run the line without --resume")
    started = time.perf_counter()
    parent = _open_sweep(experiment, space, space_name, attempt, provenance_tags(fingerprints))
    folder = SweepFolder(f"{attempt.storage_path}/{attempt.name}/trials")
    left = folder.all()  # read once: a killed sweep's last processes may still be writing
    proposals.take_over(left)
    log = TrialLog(experiment, parent.run_id, proposals.specs, provenance_tags(fingerprints))
    log.catch_up(left)
    with ray_session():
        lanes = lanes_of(experiment, space, tables, fingerprints=fingerprints, folder=folder)
        _run_missing(proposals, lanes, folder, log)
        results = {key: result for key, result in folder.all().items() if key in proposals.specs}
        _check_failures(experiment, proposals.total, results, parent)
        chosen = select_trials(experiment, proposals.specs, results, log)
        compared = (space.baseline, space.headline)  # the arms that are compared class by class
        # Of one seed: a figure takes a while.
        drawn = {spec.key for spec in chosen if spec.arm in compared and spec.experiment.seed == space.seeds[0]}
        for spec, points, files in measure_trials(chosen, tables, folder, drawn=drawn):
            with_classes = spec.arm in compared
            kept = [point for point in points if with_classes or not point.name.startswith(CLASS_METRIC)]
            log.mark_selected(spec, kept, files)
    log_subsets(chosen, tables, parent)
    best = best_trial(chosen, folder)
    model_uri = find_run(experiment.tracking, parent.run_id).tags.get("uml.best_model", "")
    if best is not None and not model_uri:  # a sweep that was killed after this does it once
        model_uri = register_best(best, tables, folder, log, parent=parent)
    failed = sum(bool(result.error) for result in results.values())
    counts = {"trials": proposals.total, "failed": failed + proposals.total - len(results)}
    counts["stopped_early"] = sum(result.stopped for result in results.values())
    sizes = {"wall_s": time.perf_counter() - started, **counts}
    return _finish(
        experiment, parent, attempt, space_name, sizes, lines=[_budget_line(proposals, space)], model=model_uri
    )


def _budget_line(proposals: Proposals, space: Space) -> str:
    """Say what every arm was allowed to search."""
    points = set(proposals.budget.values())
    if len(points) > 1:
        shares = listing(f"{arm} {count}" for arm, count in proposals.budget.items())
        return f"unequal search budgets, points a seed: {shares}; no gain is claimed from this sweep"
    conditions = proposals.total // (len(space.arms) * len(space.seeds) * max(points))
    return (
        f"budget: {max(points)} point{'' if max(points) == 1 else 's'} for each of {len(space.arms)} arms, "
        f"{conditions} condition{'' if conditions == 1 else 's'} and {len(space.seeds)} paired seeds"
    )


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
        parent = MLflowTracker(experiment.tracking, attempt.run_id)
        parent.log_text(space_as_json(space), SPACE_FILE)  # the run may be from before there was such a file
        return parent
    tags = {
        "uml.space": space_name,
        "uml.question": space.question,
        "uml.baseline": space.baseline,
        "uml.headline": space.headline,
        "uml.arms": ",".join(arm.name for arm in space.arms),
        **provenance,
    }
    parent = start_run(experiment, name=space_name, kind="sweep", tags=tags)
    parent.log_text(experiment.to_yaml(), "experiment.yaml")
    parent.log_text(space_as_json(space), SPACE_FILE)
    if space.has_exchange_rate:
        words = words_per_row(experiment)  # the report reads MLflow alone
        parent.log_metrics([MetricPoint(f"data/mean_words/{corpus}", count) for corpus, count in words.items()])
    attempt.begin(parent.run_id)
    return parent


def _run_missing(proposals: Proposals, lanes: Sequence[Lane], folder: SweepFolder, log: TrialLog) -> None:
    """Run the trials whose results are not in the folder yet, lane by lane, as many at once as the cluster holds."""
    num_done = proposals.total - proposals.num_left()
    os.environ.setdefault(
        "RAY_AIR_NEW_OUTPUT", "0"
    )  # our own bar and summary; Tune's table is printed even at verbose=0
    with tqdm(total=proposals.total, initial=num_done, unit="trial", file=sys.stderr) as bar:
        for lane in lanes:
            num_left = proposals.num_left(lane.takes)
            if not num_left:
                continue
            tuner = tune.Tuner(
                tune.with_resources(lane.trainable, lane.resources),
                tune_config=tune.TuneConfig(
                    search_alg=SweepSearcher(proposals, lane.takes, processes=lane.pack_processes),
                    scheduler=lane.scheduler,
                    num_samples=num_left,
                    reuse_actors=True,
                    max_concurrent_trials=lane.concurrent,
                ),
                run_config=tune.RunConfig(
                    storage_path=folder.ray_storage,
                    verbose=0,
                    callbacks=[TrialCallback(proposals, log, folder, bar)],
                ),
            )
            tuner.fit()


def _check_failures(
    experiment: Experiment, total: int, results: Mapping[str, TrialResult], parent: MLflowTracker
) -> None:
    reasons = [result.error for result in results.values() if result.error]
    failed = len(reasons) + total - len(results)
    if failed > experiment.tune.max_failed * total:
        parent.finish("FAILED")
        raise InputError(
            f"{failed} of {total} trials failed (tune.max_failed is {experiment.tune.max_failed:.0%}): "
            f"{listing(sorted(set(reasons)), limit=2)}"
        )


def _finish(
    experiment: Experiment,
    parent: MLflowTracker,
    attempt: Attempt,
    space_name: str,
    sizes: Mapping[str, float],
    *,
    lines: list[str],
    model: str,
) -> Summary:
    """Close the sweep and say what it shows."""
    wall_s, num_trials = sizes["wall_s"], int(sizes["trials"])
    counts = [MetricPoint(f"sweep/{name}", sizes[name]) for name in ("trials", "failed", "stopped_early")]
    parent.log_metrics([MetricPoint("perf/wall_s", wall_s), *counts])
    records = sweep_runs(experiment, parent.run_id)  # with the wall time, which the report shows
    sweep = collect_sweep(records, records[0])
    verdict, exchange = verdict_of(sweep), exchange_section(sweep)
    if exchange is not None:
        parent.log_metrics([MetricPoint(*item) for item in exchange.metrics.items()])
    parent.set_tags({"uml.verdict": verdict.text, "uml.verdict_kind": verdict.kind})
    log_summary(parent, records, experiment.tracking.uri, name=experiment.name)
    parent.finish()
    attempt.finish()
    first = (
        f"{space_name}: {num_trials} trials, {sizes['failed']:.0f} failed, {wall_s:.1f} s "
        f"({3600 * num_trials / wall_s:.0f} trials/hour); MLflow run {parent.run_id}"
    )
    registered = [f"best model: {model}"] if model else []
    text = "\n".join([first, *lines, verdict.text, *(exchange.lines if exchange is not None else ()), *registered])
    results = {
        "run_id": parent.run_id,
        "space": space_name,
        "trials": num_trials,
        "failed": int(sizes["failed"]),
        "stopped_early": int(sizes["stopped_early"]),
        "wall_s": round(wall_s, 2),
        "verdict": verdict.text,
        "verdict_kind": verdict.kind,
        "model": model,
        **({} if exchange is None else {"exchange_rate": exchange.as_json()}),
    }
    return Summary(text, results)
