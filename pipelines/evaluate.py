"""A trained run to test metrics, shifted test sets and probes, and to the analyses that explain it.

In: an experiment and one of its MLflow runs (default: the newest finished training run). Out: metrics in that run;
of analyses also figures and tables, as artifacts under analysis/.

    python -m pipelines.evaluate examples/demo.yaml --run RUN_ID
    python -m pipelines.evaluate examples/demo.yaml --analyses margins,neurons
    python -m pipelines.evaluate examples/demo.yaml --analyses all --pairs pairs.csv --classes food-fruit food-vegetable
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

from pipelines.runtime import Summary, absolute_place, experiment_parser, step_main
from pipelines.stored import build_data, corpus_store, store_tables
from uml_core.analysis.pairs import read_pairs
from uml_core.analysis.raw_rows import RawRows
from uml_core.analysis.result import AnalysisResult
from uml_core.analysis.shared_space import TrainedRun
from uml_core.analysis.suite import ANALYSES, chosen_analyses, explain
from uml_core.config import Experiment, load_experiment
from uml_core.corpora.readers import rows_of
from uml_core.corpora.sequence_data import SequenceData
from uml_core.errors import InputError, listing
from uml_core.evaluation.sequence_suite import evaluate_sequences
from uml_core.evaluation.suite import evaluate
from uml_core.models import build_model
from uml_core.models.sequence_model import build_sequence_model
from uml_core.runs import MetricPoint
from uml_core.tracking import MLflowTracker, download, experiment_runs, find_run

TRAINING_KINDS = ("uml", "unimodal")


@dataclass(frozen=True)
class AnalysisRequest:
    """What the command line asks for beyond the evaluators."""

    names: tuple[str, ...] = ()
    pairs_file: str | None = None
    plane_classes: tuple[str, str] | None = None


def main(argv: list[str] | None = None) -> int:
    """Evaluate one training run."""
    parser = experiment_parser("evaluate", description="Evaluate a trained run: test, shifted test sets, probes.")
    parser.add_argument("--run", default=None, metavar="RUN_ID", help="default: the newest finished training run")
    parser.add_argument(
        "--analyses", default=None, metavar="NAMES", help=f"explain the run: {','.join(ANALYSES)}, or all"
    )
    parser.add_argument(
        "--pairs", default=None, metavar="FILE", help="true pairs for neurons: a table of ids, one column a corpus"
    )
    parser.add_argument("--classes", nargs=2, default=None, metavar="CLASS", help="the two classes of decision_plane")
    return step_main(parser, lambda experiment, given: run(experiment, given.run, analyses=_request(given)), argv)


def run(experiment: Experiment, run_id: str | None = None, *, analyses: AnalysisRequest = AnalysisRequest()) -> Summary:
    """Evaluate a run with the experiment it was trained with, and log the metrics into it."""
    run_id = run_id or newest_training_run(experiment)
    record = find_run(experiment.tracking, run_id)
    if record.kind not in TRAINING_KINDS:
        raise InputError(
            f"--run {run_id} is a run of kind '{record.kind or 'unknown'}'; give one of a training run (uml, unimodal)"
        )
    trained_run = load_trained_run(experiment, run_id, analyses)
    measure = evaluate_sequences if isinstance(trained_run.data, SequenceData) else evaluate
    metrics = measure(trained_run.experiment, trained_run.model, trained_run.data)
    step = int(record.metrics.get("perf/steps", 0))
    tracker = MLflowTracker(experiment.tracking, run_id)
    tracker.log_metrics([MetricPoint(*item, step) for item in metrics.items()])
    shown = {name: value for name, value in metrics.items() if not name.startswith("test/class_accuracy/")}
    lines = [f"{record.kind} run {run_id}"]
    lines += [f"  {name:<36}{_shown(name, value)}" for name, value in shown.items()]
    results = explain(trained_run, analyses.names)
    for name, result in results.items():
        log_analysis(tracker, name, result, step)
        lines += result.summary
    if results:
        files = [name for result in results.values() for name in artifact_names(result)]
        lines.append(f"logged to the run under analysis/: {listing(files, limit=20)}")
    measured = {name: value for result in results.values() for name, value in result.metrics.items()}
    return Summary("\n".join(lines), {"run_id": run_id, **shown, **measured})


def load_trained_run(experiment: Experiment, run_id: str, analyses: AnalysisRequest) -> TrainedRun:
    """Fetch a run's experiment and weights and build its data; ids and raw rows only where analyses look at them."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        uri = experiment.tracking.uri
        trained = load_experiment(download(uri, f"runs:/{run_id}/experiment.yaml", directory))
        weights = load_file(download(uri, f"runs:/{run_id}/weights/model.safetensors", directory))
    if trained.objective == "self_supervised" and analyses.names:
        raise InputError("--analyses look at the shared head of objective supervised; this run is self_supervised")
    data = build_data(trained, store_tables(trained))
    if trained.model.backbone == "frozen":
        model = build_sequence_model(trained, data) if isinstance(data, SequenceData) else build_model(trained, data)
        model.load_state_dict(weights)
    else:
        from uml_core.fine_tuning import fine_tuned_space  # encoders take seconds

        model, data = fine_tuned_space(trained, data, weights)
    if not analyses.names:
        return TrainedRun(trained, model, data)
    raw = {corpus: raw_rows(trained, corpus) for corpus in trained.corpora if has_raw_rows(trained, corpus)}
    ids = {corpus: rows.ids for corpus, rows in raw.items()}
    pairs = None if analyses.pairs_file is None else read_pairs(analyses.pairs_file, ids, target=trained.target)
    return TrainedRun(trained, model, data, raw, pairs, analyses.plane_classes)


def has_raw_rows(experiment: Experiment, corpus: str) -> bool:
    """Return whether a corpus's embeddings are of its own rows: a noise control has replaced them."""
    return experiment.corpora[corpus].control != "noise"


def raw_rows(experiment: Experiment, corpus: str) -> RawRows:
    """Return a corpus's ids, with raw rows where the corpus can still be read."""
    config = experiment.corpora[corpus]
    try:
        rows = [] if config.format == "embeddings" else list(rows_of(experiment, corpus))
    except InputError:
        rows = []  # the store outlives its corpora: ids are shown instead
    return RawRows(config.modality, corpus_store(experiment, corpus).load_ids(), {row.id: row for row in rows})


def log_analysis(tracker: MLflowTracker, analysis: str, result: AnalysisResult, step: int) -> None:
    """Log an analysis's metrics, and its figures, tables and words as artifacts under analysis/."""
    tracker.log_metrics([MetricPoint(*item, step) for item in result.metrics.items()])
    with tempfile.TemporaryDirectory() as folder:
        for name, content in artifacts_of(analysis, result).items():
            path = Path(folder) / name
            path.write_bytes(content)
            tracker.log_artifact(path, "analysis")


def artifacts_of(analysis: str, result: AnalysisResult) -> Mapping[str, bytes]:
    """Return an analysis's files by name: summary and captions, every figure as SVG and PNG, every table as CSV."""
    captions = [f"{figure.name}: {figure.caption}" for figure in result.figures]
    files: dict[str, bytes] = {f"{analysis}.txt": "\n\n".join([*result.summary, *captions]).encode()}
    for figure in result.figures:
        files[f"{figure.name}.svg"], files[f"{figure.name}.png"] = figure.svg, figure.png
    return files | {name: table.encode() for name, table in result.tables.items()}


def artifact_names(result: AnalysisResult) -> Sequence[str]:
    """Return what a person should open: figures once, and tables."""
    return [*(f"{figure.name}.svg" for figure in result.figures), *result.tables]


def newest_training_run(experiment: Experiment) -> str:
    """Return the id of the newest finished training run. Raises InputError if there is none."""
    for record in experiment_runs(experiment.tracking.uri, experiment.name):
        if record.kind in TRAINING_KINDS and record.status == "FINISHED":
            return record.run_id
    raise InputError(f"experiment {experiment.name} has no finished training run; run python -m pipelines.train first")


def _request(arguments: argparse.Namespace) -> AnalysisRequest:
    """Return what the flags ask for. Raises InputError for an unknown analysis, or a flag of one that is not asked."""
    names = () if arguments.analyses is None else chosen_analyses(arguments.analyses)
    for flag, analysis in (("pairs", "neurons"), ("classes", "decision_plane")):
        if getattr(arguments, flag) is not None and analysis not in names:
            raise InputError(f"--{flag} is for analysis {analysis}, which is not asked for; add --analyses {analysis}")
    pairs_file = None if arguments.pairs is None else absolute_place(arguments.pairs)
    return AnalysisRequest(names, pairs_file, tuple(arguments.classes) if arguments.classes else None)


def _shown(name: str, value: float) -> str:
    return f"{value:.3f} nats" if name.endswith("nll") else f"{100 * value:.1f} %"


if __name__ == "__main__":
    raise SystemExit(main())
