"""What an analysis hands over: metrics for MLflow, figures, tables, and what a person should read."""

from __future__ import annotations

from dataclasses import dataclass, field

from uml_core.figures.drawing import ReportFigure


@dataclass(frozen=True)
class AnalysisResult:
    """Metrics by their MLflow names (analysis/...), figures, CSV tables by file name, and lines of summary."""

    metrics: dict[str, float] = field(default_factory=dict)
    figures: tuple[ReportFigure, ...] = ()
    tables: dict[str, str] = field(default_factory=dict)
    summary: tuple[str, ...] = ()
