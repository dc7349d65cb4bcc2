"""An MLflow experiment to one HTML page and figures, from MLflow alone.

In: an experiment's runs. Out: DIR/index.html, which needs no other file, and DIR/figures/*.svg.

    python -m pipelines.report examples/demo.yaml
    python -m pipelines.report examples/demo.yaml --output report
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pipelines.command_line import Summary
from pipelines.places import OutputFolder
from pipelines.progress import stage
from pipelines.timings import timed
from uml_core.config import Experiment
from uml_core.errors import InputError
from uml_core.figures.drawing import ReportFigure
from uml_core.files import paths
from uml_core.reporting.page import build_report
from uml_core.tracking.reading import experiment_runs, with_spaces
from uml_core.tracking.uri import without_credentials

REPORTED_KINDS = ("sweep", "uml", "unimodal")


def run(experiment: Experiment, output: str | Path | None = None) -> Summary:
    """Read the experiment's runs, write the page and its figures, and say the verdict.

    Raises InputError where there is nothing to report on, or the output folder cannot be written.
    """
    uri = experiment.tracking.uri
    with stage("read", "reading MLflow's runs"):
        records = experiment_runs(uri, experiment.name)
    if not any(record.kind in REPORTED_KINDS for record in records):
        raise InputError(
            f"experiment {experiment.name} has no runs to report on in MLflow at {without_credentials(uri)}; "
            "run python -m pipelines.tune EXPERIMENT.yaml --space controls (or pipelines.train) first"
        )
    with stage("draw", "drawing the report"):
        report = build_report(experiment.name, with_spaces(uri, records), tracking_uri=uri)
    folder = OutputFolder("--output", output or paths.join(paths.parent(experiment.store), "report"))
    page = write_report(report.html, report.figures, folder)
    return Summary(
        f"{report.verdict.text}\nreport: {page}",
        {
            "report": page,
            "verdict": report.verdict.text,
            "verdict_kind": report.verdict.kind,
            "runs": len(records),
            "figures": [folder.location(f"figures/{figure.name}.svg") for figure in report.figures],
        },
    )


@timed("draw")
def write_report(html: str, figures: Iterable[ReportFigure], folder: OutputFolder) -> str:
    """Write figures, then the page; returns the page's path or URI."""
    for figure in figures:
        folder.write(f"figures/{figure.name}.svg", figure.svg)
    return folder.write("index.html", html.encode())
