"""A sweep in numbers: the metrics its parent run carries in MLflow."""

from __future__ import annotations

import math

from uml_core.reporting.collect import Condition, SweepResults
from uml_core.reporting.tables import arm_rows


def sweep_metrics(sweep: SweepResults) -> dict[str, float]:
    """Return mean test accuracy of every arm, and the headline's paired difference to the baseline, by condition.

    Accuracies and differences are fractions. Names are sweep/SHOTS/..., SHOTS being `4_shots` or `all`.
    """
    metrics: dict[str, float] = {}
    for row in arm_rows(sweep):
        where = f"sweep/{condition_slug(row.condition)}"
        if row.test is not None:
            metrics[f"{where}/test_accuracy/{row.arm}"] = row.test.mean
        if row.role == "headline" and row.difference is not None:
            metrics[f"{where}/difference"] = row.difference.mean
            metrics[f"{where}/difference_low"] = row.difference.low
            metrics[f"{where}/difference_high"] = row.difference.high
            metrics[f"{where}/difference_holm_p"] = row.adjusted_p
    return {name: value for name, value in metrics.items() if not math.isnan(value)}


def condition_slug(condition: Condition) -> str:
    """Return a condition as part of a metric's name."""
    return "all" if condition.shots is None else f"{condition.shots}_shots"
