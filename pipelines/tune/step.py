"""Sweeps over a space from tune_spaces/ (Ray Tune).

In: an embedded experiment and a space. Out: one MLflow run for the sweep with a nested run a trial, and a verdict.

    python -m pipelines.tune examples/demo.yaml --space controls
    python -m pipelines.tune examples/demo.yaml --space mixing_ratio --trials 90
    python -m pipelines.tune examples/demo.yaml --space linear_probe --trials 180 tune.search=tpe tune.stopping=asha

The way of a trial: `proposals` (what to train next) -> `tuner` (Ray Tune, in the driver) -> `trial` (in a process of
Ray Tune, which trains several at once, tune.pack, and is used again; the tables lie in Ray's object store, shared
without copying) -> `folder` (its result and weights, in one rename each) -> `log` (its MLflow run) -> `selected` (on
validation; test is measured afterwards, once) -> the verdict, here. Where no trial takes a step the driver solves the
first ones itself, all of them in a small sweep, which then needs no Ray.

A killed sweep, started again with the same line (or --resume), runs only what is missing. The model that the verdict
ships is registered in MLflow, models:/EXPERIMENT@best of the most shots and models:/EXPERIMENT@4-shots of others;
`pipelines.predict` reads it as it is.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence

from pipelines.command_line import Summary
from pipelines.left_out import left_out_tag
from pipelines.progress import loading, stage
from pipelines.ray_session import num_cpus, num_gpus, ray_session
from pipelines.ray_train.attempts import Attempt, open_attempt
from pipelines.run_data import SharedData, build_data
from pipelines.stores import Tables, corpus_fingerprints, load_tables
from pipelines.timings import timed
from pipelines.tune.flags import check_worker, checked_space
from pipelines.tune.folder import Assignment, SweepFolder, TrialResult
from pipelines.tune.log import TrialLog, log_subsets, log_summary, register_shipped
from pipelines.tune.proposals import Proposals, build_proposals, trial_resources, trials_shown
from pipelines.tune.selected import count_unseen, measure_trials, select_trials, shipped_trials
from pipelines.tune.trial import State, one_thread, train_heads
from tune_spaces import Space, TrialSpec
from uml_core.config import Experiment, hash_of
from uml_core.errors import InputError, listing
from uml_core.files import paths
from uml_core.reporting.collect import collect_sweep
from uml_core.reporting.page import exchange_of
from uml_core.reporting.verdict import verdict_of
from uml_core.sweeps.space import space_as_json
from uml_core.tracking.reading import find_run, sweep_runs
from uml_core.tracking.records import CLASS_METRIC, SPACE_FILE, metric_points, provenance_tags
from uml_core.tracking.uri import without_password
from uml_core.tracking.writing import MLflowTracker, open_experiment, start_run

TELLING_S, RAY_PAYS_S = 2.0, 15.0  # of a processor: heads solved so long tell about the rest; Ray pays for so long ones


def run(experiment: Experiment, space_name: str, *, max_trials: int | None = None, resume: bool = False) -> Summary:
    """Run a sweep to its end: train what is missing, select on validation, measure test once, say what it shows."""
    space = checked_space(space_name, experiment)
    proposals = build_proposals(space, experiment, max_trials=max_trials)
    fingerprints = corpus_fingerprints(experiment)
    tables = load_tables(experiment, fingerprints)
    examples = proposals.examples()
    warnings = _check_trials(examples, tables)
    identity = [experiment.config_hash, sorted(spec.key for spec in examples), proposals.total]
    with open_attempt(experiment, "tune", hash_of(identity)) as attempt:
        if resume and attempt.run_id is None:
            raise InputError("--resume: no unfinished sweep of this experiment and space; run the line without it")
        started, provenance = time.perf_counter(), provenance_tags(fingerprints)
        left_out = left_out_tag(experiment, fingerprints, warnings[space.headline])
        with contextlib.ExitStack() as stack:
            is_solved = not any(spec.experiment.num_steps for spec in examples)
            if not is_solved:
                stack.enter_context(ray_session())
                trial_resources(experiment.tune, cpus=num_cpus(), gpus=num_gpus())  # refused before a run begins
            open_experiment(experiment.tracking, experiment.name)
            parent = _open_sweep(experiment, space, space_name, attempt, provenance | left_out)
            folder = SweepFolder(paths.join(attempt.directory, "trials"))
            log = stack.enter_context(TrialLog(experiment, parent.run_id, proposals.specs, provenance))
            left = folder.all()  # by a killed sweep, whose last processes may still write: what they add is not read
            proposals.take_over(left)
            log.catch_up(left)
            if is_solved:
                _solve(proposals, tables, folder, log)
            if proposals.num_left:
                stack.enter_context(ray_session())
                with loading():
                    from pipelines.tune.tuner import train_under_tune  # Ray Tune takes a second

                train_under_tune(experiment, proposals, tables, folder, log)
            attempt.check()  # Ray Tune ends as if it were done when the lease's thread interrupts it
            log.flush()
            results = log.results
            failed = proposals.total - sum(not result.error for result in results.values())  # some have left no result
            counts = {"trials": proposals.total, "failed": failed}
            counts["stopped_early"] = sum(result.stopped for result in results.values())
            if failed > experiment.tune.max_failed * proposals.total:
                parent.finish("FAILED")
                attempt.finish()  # the cause may be mended outside of the settings: the same line begins anew
                raise InputError(_failures(experiment, counts, results))
            chosen, front = select_trials(proposals.specs, results, count_cost="cost" in experiment.tune.objectives)
            for spec in front:
                log.tracker(spec).set_tags({"uml.pareto": "true"})
            _measure(chosen, space, tables, folder, log)
        log_subsets(chosen, tables, parent)
        num_unseen = count_unseen(chosen[0].experiment, tables)
        parent.set_tags({"uml.unseen_classes": str(num_unseen)})
        shipped = shipped_trials(space, chosen, results, unseen=num_unseen > 0)
        model_uri = find_run(experiment.tracking, parent.run_id).tags.get("uml.best_model", "")
        if shipped and not model_uri:  # a sweep that was killed after this does it once
            model_uri = register_shipped(shipped, tables, folder, log, parent=parent)
        lines, wall_s = [_budget_line(proposals, space)], time.perf_counter() - started
        return _finish(experiment, parent, attempt, space_name, counts, wall_s, lines=lines, model=model_uri)


@stage("read", "selecting rows")
def _check_trials(specs: Sequence[TrialSpec], tables: Tables) -> dict[str, list[str]]:
    """Let the user's mistakes surface before anything starts: the first trial of every arm must find its data.

    Returns:
        The warnings of each arm's data.
    """
    warnings: dict[str, list[str]] = {}
    for spec in specs:
        check_worker(spec.experiment)
        if spec.arm not in warnings:
            data = build_data(spec.experiment, tables)
            if data.test is None:
                raise InputError(
                    f"corpus {spec.experiment.target} has no split test: a sweep would have nothing to judge by; set "
                    "data.test_fraction=0.2, or bring a split of yours"
                )
            warnings[spec.arm] = data.warnings()
    return warnings


def _budget_line(proposals: Proposals, space: Space) -> str:
    """Say what every arm was allowed to search."""
    budget = {arm.name: proposals.budget[arm.name] for arm in space.arms if not arm.takes_no_step}
    points = set(budget.values())
    if len(points) > 1:
        shares = listing(f"{arm} {count}" for arm, count in budget.items())
        return f"unequal search budgets, points a seed: {shares}; no gain is claimed from this sweep"
    if not budget:
        return "budget: no head takes a step; those in closed form search their own scales"
    conditions = proposals.total // (sum(proposals.budget.values()) * len(space.seeds))
    return (
        f"budget: {max(points)} point{'' if max(points) == 1 else 's'} for each of {len(budget)} arms that "
        f"are trained, {conditions} condition{'' if conditions == 1 else 's'} and {len(space.seeds)} paired seeds"
    )


@stage("log", "opening the MLflow run")
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
    parent = start_run(experiment, name=space_name, kind="sweep", tags=tags, request=attempt.request())
    parent.log_text(without_password(experiment).to_yaml(), "experiment.yaml")
    parent.log_text(space_as_json(space), SPACE_FILE)
    if space.has_exchange_rate:
        from uml_core.analysis.raw_rows import words_per_row  # and scipy.signal, half a second

        words = words_per_row(experiment)  # the report reads MLflow alone
        parent.log_metrics(metric_points({f"data/mean_words/{corpus}": count for corpus, count in words.items()}))
    attempt.begin(parent.run_id)
    return parent


@timed("train")
def _solve(proposals: Proposals, tables: Tables, folder: SweepFolder, log: TrialLog) -> None:
    """Solve heads in this process, unless the rest would take longer than Ray takes to start: that is left to it."""
    began, num_left, shared = time.process_time(), proposals.num_left, SharedData(tables)
    with trials_shown(proposals) as shown, one_thread():
        while pack := proposals.next_pack(proposals.num_left):

            def note(index: int, result: TrialResult, state: State | None, pack: Sequence[TrialSpec] = pack) -> None:
                assignment = Assignment.of(pack[index])
                result = folder.write(assignment, result, state=state)
                proposals.tell(assignment.key, result)
                log.add(assignment.key, result)
                shown.adds()

            train_heads([spec.experiment for spec in pack], shared, on_end=note)
            spent_s, left = time.process_time() - began, proposals.num_left  # whatever else the machine does
            if spent_s > TELLING_S and spent_s * left > RAY_PAYS_S * (num_left - left):
                return


@stage("measure", "measuring on test")
def _measure(chosen: Sequence[TrialSpec], space: Space, tables: Tables, folder: SweepFolder, log: TrialLog) -> None:
    """Measure the selected trials on test; the arms of the claim class by class, with figures of one seed."""
    compared = (space.baseline, space.headline)
    # Of one seed: a figure takes a while.
    drawn = {spec.key for spec in chosen if spec.arm in compared and spec.experiment.seed == space.seeds[0]}
    for spec, points, files in measure_trials(chosen, tables, folder, drawn=drawn):
        kept = [point for point in points if spec.arm in compared or not point.name.startswith(CLASS_METRIC)]
        log.mark_selected(spec, kept, files)


def _failures(experiment: Experiment, counts: Mapping[str, int], results: Mapping[str, TrialResult]) -> str:
    reasons = sorted({result.error for result in results.values() if result.error})
    allowed = f"tune.max_failed is {experiment.tune.max_failed:.0%}"
    return f"{counts['failed']} of {counts['trials']} trials failed ({allowed}): {listing(reasons, limit=2)}"


@stage("log", "writing to MLflow")
def _finish(
    experiment: Experiment,
    parent: MLflowTracker,
    attempt: Attempt,
    space_name: str,
    counts: Mapping[str, int],
    wall_s: float,
    *,
    lines: list[str],
    model: str,
) -> Summary:
    parent.log_metrics(metric_points({"perf/wall_s": wall_s, **{f"sweep/{name}": n for name, n in counts.items()}}))
    records = sweep_runs(experiment, parent.run_id)  # with the wall time, which the report shows
    sweep = collect_sweep(records, records[0])
    verdict, exchange = verdict_of(sweep), exchange_of(sweep)
    if exchange is not None:
        parent.log_metrics(metric_points(exchange.metrics))
    parent.set_tags({"uml.verdict": verdict.text, "uml.verdict_kind": verdict.kind})
    log_summary(parent, records, experiment.tracking.uri, name=experiment.name)
    parent.finish()
    attempt.finish()
    first = (
        f"{space_name}: {counts['trials']} trials, {counts['failed']} failed, {wall_s:.1f} s "
        f"({3600 * counts['trials'] / wall_s:.0f} trials/hour); MLflow run {parent.run_id}"
    )
    registered = [f"best model: {model}"] if model else []
    text = "\n".join([first, *lines, verdict.text, *(exchange.lines if exchange is not None else ()), *registered])
    results = {
        "run_id": parent.run_id,
        "space": space_name,
        **counts,
        "wall_s": round(wall_s, 2),
        "verdict": verdict.text,
        "verdict_kind": verdict.kind,
        "model": model,
        **({} if exchange is None else {"exchange_rate": exchange.as_json()}),
    }
    return Summary(text, results)
