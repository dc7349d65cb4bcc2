"""What a finished sweep leaves in MLflow: test accuracy of the selected trials, its best model, numbers and report.

The best model is the selected trial that validates best among those trained without a control (no shuffled labels, no
noise, nothing unrelated), at the largest number of shots: what a user would take into use. Test accuracy has no say.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pipelines.report import write_report
from pipelines.run_data import build_data, subset_of
from pipelines.stores import Tables
from pipelines.tune.folder import SweepFolder, TrialResult
from pipelines.tune.log import TrialLog
from uml_core.config import Experiment
from uml_core.evaluation.outcome import save_weights
from uml_core.models.shared_head import head_init_corpus
from uml_core.reporting.collect import collect_sweep
from uml_core.reporting.page import build_report
from uml_core.reporting.tables import sweep_metrics
from uml_core.sweeps.selection import pareto_front, selected
from uml_core.sweeps.space import TrialSpec
from uml_core.tracking.records import MetricPoint, RunRecord
from uml_core.tracking.writing import MLflowTracker
from uml_core.training.run import TrainingRun

BEST_ALIAS = "best"  # of a registered model: what the newest sweep found best


def select_trials(
    experiment: Experiment, specs: Mapping[str, TrialSpec], results: Mapping[str, TrialResult], log: TrialLog
) -> list[TrialSpec]:
    """Return the trial of every (arm, condition, seed) selected on validation; cost counts if it was asked for."""
    groups: dict[tuple[str, str, int], dict[str, TrialResult]] = {}
    for key, result in results.items():
        if not result.error and not result.stopped:
            groups.setdefault(specs[key].group, {})[key] = result
    count_cost = "cost" in experiment.tune.objectives
    chosen = []
    for group in groups.values():
        candidates = {key: result.candidate for key, result in group.items()}
        best = selected(candidates, count_cost=count_cost)
        assert best is not None
        chosen.append(specs[best])
        for key in pareto_front(candidates) if count_cost else ():
            log.mark_pareto(specs[key])
    return chosen


def log_subsets(chosen: Sequence[TrialSpec], tables: Tables, parent: MLflowTracker) -> None:
    """Log which rows were drawn, once for all arms of the same shots and seed: files that data.subset takes."""
    drawn = {(spec.experiment.data.shots, spec.experiment.data.split_seed): spec.experiment for spec in chosen}
    for (shots, seed), experiment in drawn.items():
        name = f"subsets/shots-{'all' if shots is None else shots}-seed-{seed}.json"
        parent.log_text(subset_of(experiment, build_data(experiment, tables)), name)


def best_trial(chosen: Sequence[TrialSpec], folder: SweepFolder) -> TrialSpec | None:
    """Return the trial whose model is worth using; None where every trial had a control."""

    def rank(spec: TrialSpec) -> tuple[bool, int, float, float]:
        shots, result = spec.experiment.data.shots, folder.read(spec.key)
        assert result is not None
        return shots is None, shots or 0, result.val_accuracy, -result.val_nll

    return max((spec for spec in chosen if not has_control(spec.experiment)), key=rank, default=None)


def has_control(experiment: Experiment) -> bool:
    """Return whether a control takes part in training or in the head's start."""
    taking_part = set(experiment.active_auxiliaries)
    if experiment.objective == "supervised" and experiment.model.head_init == "zero_shot":
        taking_part.add(head_init_corpus(experiment))
    return any(experiment.corpora[name].control != "none" for name in taking_part)


def register_best(spec: TrialSpec, tables: Tables, folder: SweepFolder, log: TrialLog, *, parent: MLflowTracker) -> str:
    """Log a trial's model on its run and register it under the experiment's name; returns models:/NAME@best."""
    tags = {"uml.sweep": parent.run_id, "uml.trial": spec.key, "uml.arm": spec.arm}
    tracker = log.tracker(spec)
    experiment = spec.experiment
    run = TrainingRun(experiment, build_data(experiment, tables))
    run.load_result(folder.read_state(spec.key))
    run.load_best()
    predictor = run.objective.predictor()
    with tempfile.TemporaryDirectory() as directory:
        tracker.log_artifact(save_weights(run.model.state_dict(), Path(directory)), "weights")
        tracker.log_text(experiment.to_yaml(), "experiment.yaml")
        model_uri = tracker.log_predictor(predictor, Path(directory) / "predictor")
    uri = tracker.register_model(model_uri, experiment.name, tags=tags, alias=BEST_ALIAS)
    parent.set_tags({"uml.best_trial": tracker.run_id, "uml.best_model": uri})
    return uri


def log_summary(parent: MLflowTracker, records: Sequence[RunRecord], tracking_uri: str, *, name: str) -> None:
    """Log a sweep's numbers, its page and its figures on its parent run, from the sweep's own runs."""
    record = next(record for record in records if record.run_id == parent.run_id)
    metrics = sweep_metrics(collect_sweep(records, record))
    parent.log_metrics([MetricPoint(*item) for item in metrics.items()])
    finished = replace(record, status="FINISHED")  # as it is once this is written
    page = build_report(
        name, [finished, *(other for other in records if other is not record)], tracking_uri=tracking_uri
    )
    with tempfile.TemporaryDirectory() as directory:
        write_report(page.html, page.figures, Path(directory))
        parent.log_folder(Path(directory), "report")
