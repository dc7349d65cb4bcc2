"""Trained runs back from MLflow, to be measured: experiment, weights, data, and what is known of raw rows."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from pipelines.run_data import build_data
from pipelines.stores import corpus_store, store_tables
from uml_core.analysis.raw_rows import RawRows, read_pairs
from uml_core.analysis.shared_space import TrainedRun
from uml_core.config import Experiment, load_experiment
from uml_core.corpora.readers import rows_of
from uml_core.corpora.rows import Row
from uml_core.errors import InputError
from uml_core.evaluation.run import EvaluatedRun
from uml_core.gradients.ranks import RankContext
from uml_core.tracking.reading import download, experiment_runs, find_run
from uml_core.training.run import build_objective

TRAINING_KINDS = ("uml", "unimodal")


@dataclass(frozen=True)
class LoadedRun:
    """One training run, as evaluators see it."""

    run_id: str
    kind: str
    step: int
    evaluated: EvaluatedRun
    weights: Mapping[str, Any]


def load_run(experiment: Experiment, run_id: str) -> LoadedRun:
    """Fetch a run's experiment and weights and build its data.

    What is measured comes from the experiment file as it is now: its section evaluation, and its shifted test sets.

    Raises InputError where the run is no training run, or its data is no longer in the store.
    """
    record = find_run(experiment.tracking, run_id)
    if record.kind not in TRAINING_KINDS:
        raise InputError(
            f"--run {run_id} is a run of kind '{record.kind or 'unknown'}'; give one of a training run (uml, unimodal)"
        )
    with tempfile.TemporaryDirectory() as folder:
        uri = experiment.tracking.uri
        logged = load_experiment(download(uri, f"runs:/{run_id}/experiment.yaml", Path(folder)))
        weights = load_file(download(uri, f"runs:/{run_id}/weights/model.safetensors", Path(folder)))
    shifted = {
        f"corpora.{name}": experiment.corpora[name].model_dump(mode="json") for name in experiment.shifted_corpora
    }
    trained = logged.override({"evaluation": experiment.evaluation.model_dump(mode="json"), **shifted})
    data = build_data(trained, store_tables(trained))
    objective = build_objective(trained, data, RankContext.cpu())
    objective.model.load_state_dict(weights)

    @functools.cache
    def ids(corpus: str) -> tuple[str, ...]:
        return corpus_store(trained, corpus).load_ids()

    @functools.cache
    def raw(corpus: str) -> Mapping[str, Row]:
        return readable_rows(trained, corpus)

    evaluated = EvaluatedRun(trained, data, objective, ids=ids, raw=raw)
    return LoadedRun(run_id, record.kind, int(record.metrics.get("perf/steps", 0)), evaluated, weights)


def newest_training_run(experiment: Experiment) -> str:
    for record in experiment_runs(experiment.tracking.uri, experiment.name):
        if record.kind in TRAINING_KINDS and record.status == "FINISHED":
            return record.run_id
    raise InputError(f"experiment {experiment.name} has no finished training run; run python -m pipelines.train first")


def explained_run(run: LoadedRun, pairs_file: str | None, plane_classes: tuple[str, str] | None) -> TrainedRun:
    """A run as analyses see it: its shared head, ids and raw rows. Raises InputError for self_supervised."""
    trained, data, model = run.evaluated.experiment, run.evaluated.data, run.evaluated.objective.model
    if trained.objective == "self_supervised":
        raise InputError("--analyses look at the shared head of objective supervised; this run is self_supervised")
    if trained.model.backbone != "frozen":
        from uml_core.training.fine_tuning import fine_tuned_space  # encoders take seconds

        model, data = fine_tuned_space(trained, data, run.weights)
    raw = {
        corpus: RawRows(config.modality, corpus_store(trained, corpus).load_ids(), readable_rows(trained, corpus))
        for corpus, config in trained.corpora.items()
        if config.control != "noise"  # which has taken the place of the corpus's own rows
    }
    ids = {corpus: rows.ids for corpus, rows in raw.items()}
    pairs = None if pairs_file is None else read_pairs(pairs_file, ids, target=trained.target)
    return TrainedRun(trained, model, data, raw, pairs, plane_classes)


def readable_rows(experiment: Experiment, corpus: str) -> dict[str, Row]:
    """A corpus's raw rows by id; none where it has none, or can no longer be read: the store outlives it."""
    if experiment.encoder_of(corpus) is None:
        return {}
    try:
        return {row.id: row for row in rows_of(experiment, corpus)}
    except InputError:
        return {}
