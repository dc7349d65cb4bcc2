"""What a step's workers tell Ray's metrics endpoint, for Prometheus; cluster/grafana/uml.json draws it.

Recorded in the process that does the work, once a part or an evaluation; trials in the driver, which sees also those
whose process died. Ray exports it every ten seconds as `ray_NAME`, counters as `ray_NAME_total`, with the tags
`experiment`, `step` and those below; a process without Ray exports nothing.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

METRICS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "uml_rows": ("Counter", "Rows embedded, or trained on.", ("corpus",)),
    "uml_rejected_rows": ("Counter", "Rows that could not be embedded.", ("corpus",)),
    "uml_seconds": ("Counter", "Seconds of workers in a stage; wait: for data.", ("corpus", "stage")),
    "uml_steps": ("Counter", "Optimiser steps of every training worker.", ()),
    "uml_loss": ("Gauge", "Training loss since the evaluation before.", ("corpus",)),
    "uml_val_accuracy": ("Gauge", "Accuracy of validation.", ()),
    "uml_trials": ("Counter", "Trials that have ended.", ("outcome",)),
}


class StepMetrics:
    """The metrics of one process of a step."""

    def __init__(self, step: str, experiment: str) -> None:
        self._tags = {"step": step, "experiment": experiment}

    def count(self, name: str, value: float, **tags: str) -> None:
        """Add to a counter."""
        if value > 0 and _is_exported():  # Ray refuses 0
            _metric(name).inc(value, {**self._tags, **tags})

    def set(self, name: str, value: float, **tags: str) -> None:
        """Set a gauge."""
        if _is_exported():
            _metric(name).set(value, {**self._tags, **tags})


def _is_exported() -> bool:
    """Whether this process is one of Ray's; one without imports none."""
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


@functools.cache
def _metric(name: str) -> Any:
    from ray.util import metrics

    kind, description, tags = METRICS[name]
    return getattr(metrics, kind)(name, description, ("step", "experiment", *tags))
