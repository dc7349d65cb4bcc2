"""What is tracked, as plain data: values of metrics, runs, and the tags that say what a run is. No MLflow here."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from uml_core.config import Experiment

SPACE_FILE = "space.json"  # artifact of a sweep: its space, as `uml_core.sweeps.space.space_as_json` writes it
PARENT_TAG = "mlflow.parentRunId"  # of a nested run
PRESENTED_TAG = "uml.presented_run"  # of an MLflow experiment: the run whose model a step registered last
LEFT_OUT_TAG = "uml.left_out"  # of a sweep or a training run: what of its data took no part, a line each
CLASS_METRIC = "test/class_accuracy/"  # before a class's name: the share of its test rows that are recognised


@dataclass(frozen=True)
class MetricPoint:
    """One value of one metric at one optimiser step."""

    name: str
    value: float
    step: int = 0


def metric_points(values: Mapping[str, float | None], step: int = 0) -> list[MetricPoint]:
    """One value of each metric by name; None, which is not measured, is left out."""
    return [MetricPoint(name, float(value), step) for name, value in values.items() if value is not None]


@dataclass(frozen=True)
class RunRecord:
    """One MLflow run as plain data, as the report and the comparisons read it."""

    run_id: str
    name: str
    status: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]  # the last value of each
    tags: Mapping[str, str]
    start_time_ms: int = 0
    end_time_ms: int = 0
    space_json: str = ""  # of a sweep: its SPACE_FILE; "" for one logged before there was such a file

    @property
    def kind(self) -> str:
        """embed, unimodal, uml, sweep or trial."""
        return self.tags.get("uml.kind", "")

    @property
    def arm(self) -> str:
        """The arm's name in a sweep, else ""."""
        return self.tags.get("uml.arm", "")

    @property
    def parent_run_id(self) -> str | None:
        """The sweep's run, for a trial."""
        return self.tags.get(PARENT_TAG)


def run_kind(experiment: Experiment) -> str:
    """The tag uml.kind: uml where an auxiliary corpus takes part in a step or in the head, else unimodal."""
    has_head = experiment.objective == "supervised"
    initialised = has_head and experiment.model.head_init == "zero_shot" and experiment.auxiliaries
    return "uml" if experiment.active_auxiliaries or initialised else "unimodal"


def provenance_tags(fingerprints: Mapping[str, str]) -> dict[str, str]:
    """The tags that say which store (each corpus's fingerprint) and which code a run comes from."""
    stores = ",".join(f"{corpus}={value}" for corpus, value in fingerprints.items())
    return {"uml.store_fingerprint": stores, "git.commit": _git_commit()}


def _git_commit() -> str:
    """The commit of the code that runs; "unknown" where it is no checkout, as in a job's uploaded copy.

    An installed package may lie within the user's own checkout, whose commit says nothing of it.
    """
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return "unknown"
    line = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        return subprocess.run(line, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
