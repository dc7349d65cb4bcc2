"""A trained run to test metrics, shifted test sets and probes.

In: an experiment and one of its MLflow runs (default: the newest finished training run). Out: metrics in that run.

    python -m pipelines.evaluate examples/demo.yaml --run RUN_ID
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from safetensors.torch import load_file

from pipelines.runtime import Summary, experiment_parser, step_main
from pipelines.train import store_tables
from uml_core.config import Experiment, load_experiment
from uml_core.corpora.training_data import build_training_data
from uml_core.errors import InputError
from uml_core.evaluation.suite import evaluate
from uml_core.models import build_model
from uml_core.runs import MetricPoint
from uml_core.tracking import MLflowTracker, download, experiment_runs, find_run

TRAINING_KINDS = ("uml", "unimodal")


def main(argv: list[str] | None = None) -> int:
    """Evaluate one training run."""
    parser = experiment_parser("evaluate", description="Evaluate a trained run: test, shifted test sets, probes.")
    parser.add_argument("--run", default=None, metavar="RUN_ID", help="default: the newest finished training run")
    return step_main(parser, lambda experiment, arguments: run(experiment, arguments.run), argv)


def run(experiment: Experiment, run_id: str | None = None) -> Summary:
    """Evaluate a run with the experiment it was trained with, and log the metrics into it."""
    run_id = run_id or newest_training_run(experiment)
    record = find_run(experiment.tracking, run_id)
    if record.kind not in TRAINING_KINDS:
        raise InputError(
            f"--run {run_id} is a run of kind '{record.kind or 'unknown'}'; give one of a training run (uml, unimodal)"
        )
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        uri = experiment.tracking.uri
        trained = load_experiment(download(uri, f"runs:/{run_id}/experiment.yaml", directory))
        weights = load_file(download(uri, f"runs:/{run_id}/weights/model.safetensors", directory))
    data = build_training_data(trained, store_tables(trained))
    model = build_model(trained, data)
    model.load_state_dict(weights)
    metrics = evaluate(trained, model, data)
    step = int(record.metrics.get("perf/steps", 0))
    MLflowTracker(experiment.tracking, run_id).log_metrics([MetricPoint(*item, step) for item in metrics.items()])
    shown = {name: value for name, value in metrics.items() if not name.startswith("test/class_accuracy/")}
    lines = [f"{record.kind} run {run_id}"]
    lines += [f"  {name:<36}{_shown(name, value)}" for name, value in shown.items()]
    return Summary("\n".join(lines), {"run_id": run_id, **shown})


def newest_training_run(experiment: Experiment) -> str:
    """Return the id of the newest finished training run. Raises InputError if there is none."""
    for record in experiment_runs(experiment.tracking.uri, experiment.name):
        if record.kind in TRAINING_KINDS and record.status == "FINISHED":
            return record.run_id
    raise InputError(f"experiment {experiment.name} has no finished training run; run python -m pipelines.train first")


def _shown(name: str, value: float) -> str:
    return f"{value:.3f} nats" if name.endswith("nll") else f"{100 * value:.1f} %"


if __name__ == "__main__":
    raise SystemExit(main())
