"""A trained run to test metrics, shifted test sets, probes, robustness and comparisons, and to analyses.

In: an experiment and one of its MLflow runs (default: the run whose model train or tune registered last). Out: metrics
in that run, tables and figures as artifacts under evaluation/, and those of analyses under analysis/.

    python -m pipelines.evaluate examples/demo.yaml --run RUN_ID
    python -m pipelines.evaluate examples/demo.yaml --evaluators default,corruptions,mine.py:evaluate_it
    python -m pipelines.evaluate examples/demo.yaml --run RUN_ID --against TWIN_RUN_ID
    python -m pipelines.evaluate examples/demo.yaml --run RUN_A,RUN_B,RUN_C --against TWIN_A,TWIN_B,TWIN_C
    python -m pipelines.evaluate examples/demo.yaml --analyses margins,neurons
    python -m pipelines.evaluate examples/demo.yaml --analyses all --pairs pairs.csv --classes food-fruit food-vegetable
"""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

from pipelines.command_line import Summary
from pipelines.evaluate.flags import check_flags
from pipelines.progress import StepProgress, loading
from pipelines.run_data import build_data
from pipelines.stores import corpus_store, store_tables
from pipelines.timings import timed
from uml_core.analysis.raw_rows import RawRows, read_pairs
from uml_core.analysis.registry import explain
from uml_core.analysis.shared_space import AnalysisResult, TrainedRun
from uml_core.config import Experiment, load_experiment
from uml_core.corpora.readers import rows_of
from uml_core.corpora.rows import Row
from uml_core.errors import InputError, listing
from uml_core.evaluation.comparison import compare
from uml_core.evaluation.registry import chosen_evaluators, measure
from uml_core.evaluation.run import EvaluatedRun, Evaluator
from uml_core.gradients.ranks import RankContext
from uml_core.serving.predictor import read_settings
from uml_core.tracking.ended_runs import Addition, add_to_runs
from uml_core.tracking.reading import download, find_run, predictor_folder, presented_run
from uml_core.tracking.records import metric_points
from uml_core.tracking.writing import MLflowTracker
from uml_core.training.run import build_objective

HIDDEN = re.compile(r"test/class_accuracy/|corruption/.*/\d/")  # logged, and too many to print


def run(
    experiment: Experiment,
    run_ids: str | Sequence[str] | None = None,
    *,
    against: Sequence[str] = (),
    analyses: Sequence[str] = (),
    pairs_file: str | None = None,
    plane_classes: tuple[str, str] | None = None,
) -> Summary:
    """Evaluate runs with the experiments they were trained with, and log the results into them."""
    given = [run_ids] if isinstance(run_ids, str) else list(run_ids or ())
    check_flags(given, against, analyses, pairs_file, plane_classes)
    with loading():  # scikit-learn
        evaluators = chosen_evaluators(experiment.evaluation.evaluators)
    ids = given or [presented_run(experiment.tracking.uri, experiment.name)]
    with StepProgress("reading the run") as shown:
        runs = [load_run(experiment, run_id) for run_id in ids]
        shown.says(f"measuring {listing(evaluators)}")
        parts = [
            _evaluate(
                experiment,
                each,
                evaluators,
                explain(explained_run(each.evaluated, pairs_file, plane_classes), analyses) if analyses else {},
            )
            for each in runs
        ]
        if against:
            shown.says("comparing")
            parts.append(_compare(experiment, runs, [load_run(experiment, run_id) for run_id in against]))
    taken = [] if run_ids else [f"run {ids[0]}: its model was registered last; --run takes another"]
    text = "\n".join([*taken, *(part.text for part in parts)])
    own = parts[0].results if len(runs) == 1 else {"runs": [part.results for part in parts[: len(runs)]]}
    return Summary(text, {**own, **(parts[-1].results if against else {})})


@timed("measure")
def _evaluate(
    experiment: Experiment,
    loaded: LoadedRun,
    evaluators: Mapping[str, Evaluator],
    explained: Mapping[str, AnalysisResult],
) -> Summary:
    measured = measure(loaded.evaluated, evaluators)

    @timed("log")
    def log(metrics: Mapping[str, float], files: Mapping[str, bytes], folder: str) -> None:
        add_to_runs(experiment.tracking, [Addition(loaded.run_id, metric_points(metrics, loaded.step), {})])
        MLflowTracker(experiment.tracking, loaded.run_id).log_files(files, folder)

    log(measured.metrics, measured.files, "evaluation")
    shown = {name: value for name, value in measured.metrics.items() if not HIDDEN.match(name)}
    lines = [f"{loaded.kind} run {loaded.run_id}"]
    lines += [f"  {name:<52}{_shown(name, value)}" for name, value in shown.items()]
    if measured.files:  # of a figure its SVG alone is for a person to open
        drawn = {name[:-4] for name in measured.files if name.endswith(".svg")}
        to_open = [name for name in measured.files if not (name.endswith(".txt") and name[:-4] in drawn)]
        lines.append(f"logged to the run under evaluation/: {listing(to_open, limit=20)}")
    to_open, found = [], dict[str, float]()
    for name, result in explained.items():
        files = _artifacts(name, result)
        log(result.metrics, files, "analysis")
        lines += result.summary
        to_open += [file for file in files if not file.endswith(".txt")]
        found |= result.metrics
    if explained:
        lines.append(f"logged to the run under analysis/: {listing(to_open, limit=20)}")
    return Summary("\n".join(lines), {"run_id": loaded.run_id, **shown, **found})


@timed("measure")
def _compare(experiment: Experiment, ours: Sequence[LoadedRun], others: Sequence[LoadedRun]) -> Summary:
    """Compare runs with others on the same test rows; each of ours has the comparison in its MLflow run."""
    comparison = compare([run.evaluated for run in ours], [run.evaluated for run in others], seed=experiment.seed)
    additions = [
        Addition(mine.run_id, metric_points(comparison.metrics(f"against/{other.run_id}"), mine.step), {})
        for mine, other in zip(ours, others, strict=True)
    ]
    add_to_runs(experiment.tracking, additions)
    named = f"against {listing((f'{run.kind} run {run.run_id}' for run in others), limit=10)}"
    return Summary("\n".join([named, *(f"  {line}" for line in comparison.lines())]), comparison.metrics("against"))


def _artifacts(analysis: str, result: AnalysisResult) -> dict[str, bytes]:
    """An analysis's files by name: summary and captions, every figure as SVG, every table as CSV."""
    captions = [f"{figure.name}: {figure.caption}" for figure in result.figures]
    files: dict[str, bytes] = {f"{analysis}.txt": "\n\n".join([*result.summary, *captions]).encode()}
    files |= {f"{figure.name}.svg": figure.svg for figure in result.figures}
    return files | {name: table.encode() for name, table in result.tables.items()}


def _shown(name: str, value: float) -> str:
    end = name.rpartition("/")[2]
    if "nll" in end:
        return f"{value:.3f} nats"
    return f"{100 * value:.1f} %" if re.search("accuracy|f1|calibration_error", end) else f"{value:.4g}"


@dataclass(frozen=True)
class LoadedRun:
    """One training run, as evaluators see it."""

    run_id: str
    kind: str
    step: int
    evaluated: EvaluatedRun


@timed("read")
def load_run(experiment: Experiment, run_id: str) -> LoadedRun:
    """Fetch a run's experiment and weights and build its data.

    What is measured comes from the experiment file as it is now: its section evaluation, and its shifted test sets.

    Raises InputError where the run logged no model, or its data is no longer in the store, or has other classes now.
    """
    record, uri = find_run(experiment.tracking, run_id), experiment.tracking.uri
    with tempfile.TemporaryDirectory() as folder:
        try:
            weights = load_file(download(uri, f"runs:/{run_id}/weights/model.safetensors", Path(folder)))
            file = download(uri, f"runs:/{run_id}/experiment.yaml", Path(folder))
            classes = read_settings(predictor_folder(uri, f"runs:/{run_id}/model", Path(folder)))[1]["classes"]
        except InputError as error:
            raise InputError(
                f"--run {run_id} is a run of kind '{record.kind or 'unknown'}' without a model ({error}); give one of "
                "a training run (uml, unimodal), or of the trial that a sweep ships (its tag uml.best_trial)"
            ) from None
        logged = load_experiment(file)
        if "val_shots" not in file.read_text(encoding="utf-8"):  # of a run from before there was another way
            logged = logged.override({"data.val_shots": "same"})
    shifted = {
        f"corpora.{name}": experiment.corpora[name].model_dump(mode="json") for name in experiment.shifted_corpora
    }
    trained = logged.override({"evaluation": experiment.evaluation.model_dump(mode="json"), **shifted})
    data = build_data(trained, store_tables(trained))
    _check_classes(run_id, classes, data.classes)
    objective = build_objective(trained, data, RankContext.cpu())
    objective.model.load_state_dict(weights)

    @functools.cache
    def ids(corpus: str) -> tuple[str, ...]:
        return corpus_store(trained, corpus).load_ids()

    @functools.cache
    def raw(corpus: str) -> dict[str, Row]:
        try:
            return {row.id: row for row in rows_of(trained, corpus)} if trained.encoder_of(corpus) else {}
        except InputError:  # it can no longer be read: the store outlives it
            return {}

    evaluated = EvaluatedRun(trained, data, objective, ids=ids, raw=raw)
    return LoadedRun(run_id, record.kind, int(record.metrics.get("perf/steps", 0)), evaluated)


def _check_classes(run_id: str, trained: Sequence[str], stored: Sequence[str]) -> None:
    """Refuse a run of other classes than the store gives it: its head has a row a class, in their order."""
    if tuple(trained) == tuple(stored):
        return
    new, gone = sorted(set(stored) - set(trained)), sorted(set(trained) - set(stored))
    changes = [f"{word}: {listing(names)}" for word, names in (("new", new), ("gone", gone)) if names]
    raise InputError(
        f"--run {run_id} was trained on {len(trained)} classes, and the store has {len(stored)} for it now "
        f"({'; '.join(changes) or 'other classes have train rows'}); train again (python -m pipelines.train), or embed "
        "the target with the classes of the run"
    )


def explained_run(run: EvaluatedRun, pairs_file: str | None, plane_classes: tuple[str, str] | None) -> TrainedRun:
    """A run as analyses see it: its head, ids and raw rows. Raises InputError for self_supervised."""
    trained, data, model = run.experiment, run.data, run.objective.model
    if trained.objective == "self_supervised":
        raise InputError("--analyses look at the shared head of objective supervised; this run is self_supervised")
    if trained.model.backbone != "frozen":
        from uml_core.training.fine_tuning import fine_tuned_space  # encoders take seconds

        model, data = fine_tuned_space(trained, data, model.state_dict())
    raw = {
        corpus: RawRows(config.modality, run.table_ids(corpus), run.raw_rows(corpus))
        for corpus, config in trained.corpora.items()
        if config.control != "noise"  # which has taken the place of the corpus's own rows
    }
    ids = {corpus: rows.ids for corpus, rows in raw.items()}
    pairs = None if pairs_file is None else read_pairs(pairs_file, ids, target=trained.target)
    return TrainedRun(trained, model, data, raw, pairs, plane_classes, run.probabilities)
