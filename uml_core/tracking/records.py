"""What is tracked, as plain data: a run, and one value of a metric. No MLflow here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SPACE_FILE = "space.json"  # artifact of a sweep: its space, as `uml_core.sweeps.space.space_as_json` writes it
CLASS_METRIC = "test/class_accuracy/"  # before a class's name: the share of its test rows that are recognised


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
        """unimodal, uml, sweep or trial."""
        return self.tags.get("uml.kind", "")

    @property
    def arm(self) -> str:
        """The arm's name in a sweep, else ""."""
        return self.tags.get("uml.arm", "")

    @property
    def parent_run_id(self) -> str | None:
        """The sweep's run, for a trial."""
        return self.tags.get("mlflow.parentRunId")


@dataclass(frozen=True)
class MetricPoint:
    """One value of one metric at one optimiser step."""

    name: str
    value: float
    step: int = 0
