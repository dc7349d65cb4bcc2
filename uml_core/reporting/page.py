"""The report: one HTML file that needs nothing else, and its figures.

In: the runs of one MLflow experiment as `RunRecord`s. Out: a `Report`, which begins with four answers: whether unpaired
data help, how much, which corpus does, and what to ship.

    report = build_report("pets", with_spaces(uri, experiment_runs(uri, "pets")), tracking_uri=uri)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from uml_core.figures import words
from uml_core.figures.drawing import ReportFigure
from uml_core.reporting import space_rows, tables
from uml_core.reporting.answers import DECIDING_COMMAND, answers_of
from uml_core.reporting.collect import (
    SweepResults,
    condition_of,
    earlier_sweeps,
    is_selected,
    latest_sweeps,
    training_runs,
)
from uml_core.reporting.figures import class_figures, sweep_figures
from uml_core.reporting.verdict import Verdict, verdict_of
from uml_core.tracking.records import RunRecord
from uml_core.tracking.uri import without_credentials

if TYPE_CHECKING:
    from uml_core.reporting.exchange import ExchangeSection

TEMPLATES = Path(__file__).parent / "templates"
MAX_TRAINING_RUNS, MAX_FAILURES = 20, 30
# The template asks for a sweep's tables where it prints them, so that a table is named once and not in a class between.
TABLES = (
    *(tables.arm_rows, tables.arm_notes, tables.shift_rows, tables.front_trials),
    *(space_rows.subset_rows, space_rows.addition_rows, space_rows.sentence_rows, space_rows.backbone_rows),
    *(space_rows.mixture_rows, condition_of, is_selected),
)


@dataclass(frozen=True)
class SweepSection:
    """One sweep on the page: what is more than a table."""

    sweep: SweepResults
    verdict: Verdict
    figures: tuple[ReportFigure, ...]
    exchange: ExchangeSection | None
    classes: list[space_rows.ClassGains]

    @property
    def decides(self) -> bool:
        """Whether the space names controls; one that was not logged, of an earlier version, may have had them."""
        return bool(self.sweep.design.needs) or not self.sweep.parent.space_json

    @property
    def equal_budgets(self) -> bool:
        return all(self.sweep.equal_budgets(condition) for condition in self.sweep.conditions)


@dataclass(frozen=True)
class Report:
    """The page and what it is made of; its figures are on it, too."""

    html: str
    verdict: Verdict
    figures: tuple[ReportFigure, ...]


def build_report(name: str, records: Sequence[RunRecord], *, tracking_uri: str) -> Report:
    """Build the report on an experiment's runs.

    Raises ValueError where there are no sweeps and no training runs among them.
    """
    sections = sorted((_section(sweep) for sweep in latest_sweeps(records).values()), key=_order)
    plain = training_runs(records)
    if not sections and not plain:
        raise ValueError(f"experiment {name} has no sweeps and no training runs")
    count = f"{len(plain)} plain training run{' without a sweep does' if len(plain) == 1 else 's without a sweep do'}"
    text = f"Undecided: {count} not show whether the unpaired data helps; to decide, run {DECIDING_COMMAND}."
    verdict = sections[0].verdict if sections else Verdict("undecided", text)
    sweeps = [section.sweep for section in sections]
    earlier = [(sweep, verdict_of(sweep)) for sweep in earlier_sweeps(records, sweeps)]
    failures = tables.failed_trials(sweeps)
    html = (
        environment()
        .get_template("report.html.j2")
        .render(
            {table.__name__: table for table in TABLES},
            name=name,
            verdict=verdict,
            answers=answers_of(sweeps, verdict, plain),
            sections=sections,
            earlier=earlier,
            deciding_command=DECIDING_COMMAND,
            training_runs=plain[:MAX_TRAINING_RUNS],
            num_training_runs=len(plain),
            costs=tables.cost_rows(sweeps, plain),
            failures=failures[:MAX_FAILURES],
            num_failures=len(failures),
            tracking_uri=without_credentials(tracking_uri),
            provenance=[section.sweep.parent for section in sections] + plain[:MAX_TRAINING_RUNS],
        )
    )
    return Report(html, verdict, tuple(figure for section in sections for figure in section.figures))


def _order(section: SweepSection) -> tuple[int, int]:
    """The one whose verdict counts first: the newest with controls, then one that searched mixtures, then others."""
    rank = 0 if section.decides else 1 if space_rows.mixture_grids(section.sweep) else 2
    return rank, -section.sweep.parent.start_time_ms


def _section(sweep: SweepResults) -> SweepSection:
    exchange, classes = exchange_of(sweep), space_rows.class_gains(sweep)
    drawings = (
        *sweep_figures(sweep),
        *class_figures(sweep, classes),
        *([exchange.figure] if exchange is not None else []),
    )
    return SweepSection(sweep, verdict_of(sweep), drawings, exchange, classes)


def exchange_of(sweep: SweepResults) -> ExchangeSection | None:
    """The exchange rate of a sweep whose arms are amounts."""
    if not sweep.design.has_exchange_rate:
        return None
    from uml_core.reporting.exchange import exchange_section  # pandas and the fit take half a second to import

    return exchange_section(sweep)


def environment() -> Environment:
    """The templates' environment: escaped, strict about names, with the filters that write numbers."""
    templates = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(words.FILTERS)
    return templates
