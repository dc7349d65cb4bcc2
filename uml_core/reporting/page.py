"""The report: one HTML file that needs nothing else, and its figures.

In: the runs of one MLflow experiment as `RunRecord`s. Out: a `Report`, whose first sentence is the verdict.

    report = build_report("pets", experiment_runs(uri, "pets"), tracking_uri=uri)
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from uml_core.reporting import figures
from uml_core.reporting.collect import CONTROLS, MIXING_RATIO, SweepResults, latest_sweeps, training_runs
from uml_core.reporting.drawing import ReportFigure, drawn
from uml_core.reporting.exchange import ExchangeSection, exchange_section
from uml_core.reporting.mixtures import mixture_grids
from uml_core.reporting.tables import (
    arm_notes,
    arm_rows,
    cost_rows,
    failed_trials,
    mixture_rows,
    shift_rows,
)
from uml_core.reporting.verdict import Verdict, verdict_of
from uml_core.runs import RunRecord

TEMPLATES = Path(__file__).parent / "templates"
MAX_TRAINING_RUNS, MAX_FAILURES = 20, 30
KIND_WORDS = {"gain": "gain", "no_gain": "no gain", "harm": "harm", "undecided": "undecided"}
DECIDING_COMMAND = "python -m pipelines.tune EXPERIMENT.yaml --space controls"


class Page(Protocol):
    """What `pipelines.report.write_report` writes: a page and its figures."""

    @property
    def html(self) -> str:
        """The whole page, figures inside it."""

    @property
    def figures(self) -> tuple[ReportFigure, ...]:
        """The figures once more, to be written as files."""


@dataclass(frozen=True)
class SweepSection:
    """One sweep on the page."""

    sweep: SweepResults
    verdict: Verdict
    figures: tuple[ReportFigure, ...]
    rows: list[Any]
    shifts: list[Any]
    mixtures: list[Any]
    exchange: ExchangeSection | None

    @property
    def arms(self) -> dict[str, str]:
        """Every arm with a sentence on what it is."""
        return arm_notes(self.sweep)


@dataclass(frozen=True)
class Report:
    """The page and what it is made of."""

    html: str
    verdict: Verdict
    figures: tuple[ReportFigure, ...]


def build_report(name: str, records: Sequence[RunRecord], *, tracking_uri: str) -> Report:
    """Return the report on an experiment's runs.

    Raises:
        ValueError: there are no sweeps and no training runs among them.
    """
    sections = [_section(sweep) for sweep in _in_order(latest_sweeps(records))]
    plain = training_runs(records)
    if not sections and not plain:
        raise ValueError(f"experiment {name} has no sweeps and no training runs")
    verdict = sections[0].verdict if sections else _without_sweeps(plain)
    sweeps = [section.sweep for section in sections]
    failures = failed_trials(sweeps)
    html = (
        environment()
        .get_template("report.html.j2")
        .render(
            name=name,
            verdict=verdict,
            kind_words=KIND_WORDS,
            sections=sections,
            deciding_command=DECIDING_COMMAND,
            training_runs=plain[:MAX_TRAINING_RUNS],
            num_training_runs=len(plain),
            costs=cost_rows(sweeps, plain),
            failures=failures[:MAX_FAILURES],
            num_failures=len(failures),
            tracking_uri=without_credentials(tracking_uri),
            provenance=[section.sweep.parent for section in sections] + plain[:MAX_TRAINING_RUNS],
        )
    )
    return Report(html, verdict, tuple(figure for section in sections for figure in section.figures))


def without_credentials(uri: str) -> str:
    """Return a URI fit to be shown: no user, no password, no query."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return uri
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"


def _in_order(sweeps: dict[str, SweepResults]) -> list[SweepResults]:
    """Return the sweeps, the one whose verdict counts first: controls, then mixing_ratio, then the newest other."""
    rank = {CONTROLS: 0, MIXING_RATIO: 1}
    return sorted(sweeps.values(), key=lambda sweep: (rank.get(sweep.space, 2), -sweep.parent.start_time_ms))


def _without_sweeps(plain: Sequence[RunRecord]) -> Verdict:
    count = f"{len(plain)} plain training run{' without a sweep' if len(plain) == 1 else 's without a sweep'}"
    verb = "does" if len(plain) == 1 else "do"
    text = f"Undecided: {count} {verb} not show whether the unpaired data helps; to decide, run {DECIDING_COMMAND}."
    return Verdict("undecided", text)


def _section(sweep: SweepResults) -> SweepSection:
    exchange = exchange_section(sweep)
    drawings = (*_figures(sweep), *([exchange.figure] if exchange is not None else []))
    mixtures = mixture_rows(sweep) if mixture_grids(sweep) else []
    return SweepSection(sweep, verdict_of(sweep), drawings, arm_rows(sweep), shift_rows(sweep), mixtures, exchange)


def _figures(sweep: SweepResults) -> Iterator[ReportFigure]:
    space = re.sub(r"[^A-Za-z0-9_-]+", "-", sweep.space).strip("-")[:60] or "sweep"
    target = sweep.target or "the target"
    drawings = (
        (
            "accuracy_per_arm",
            figures.accuracy_per_arm,
            f"Test accuracy on {target} per arm. A dot is a seed; above the dots, the bar is their mean and the "
            "line its 95 % interval. Arms share their seeds, so trust the paired differences in the table over "
            "overlapping lines.",
        ),
        (
            "accuracy_against_shots",
            figures.accuracy_against_shots,
            f"Mean test accuracy on {target} against training samples per class; lines up and down are 95 % "
            "intervals over seeds.",
        ),
        (
            "mixing_heat_map",
            figures.mixing_heat_map,
            f"Mean validation accuracy of arm {sweep.headline} by how much auxiliary data is mixed in. "
            "The framed cell is the best.",
        ),
        (
            "shifted_accuracy",
            figures.shifted_accuracy,
            f"Mean accuracy on the test set and the shifted test sets of {target}. The shorter the line, the less the "
            "shift costs.",
        ),
    )
    for name, draw, caption in drawings:
        figure = draw(sweep)
        if figure is not None:
            yield drawn(f"{space}_{name}", figure, caption=caption, alternative=_alternative(name, sweep))


def _alternative(name: str, sweep: SweepResults) -> str:
    """Say in words what the figure shows, with its numbers."""
    if name == "mixing_heat_map":
        parts = [
            f"{grid.condition.words}: best {percent(grid.accuracy[grid.best])} % at loss weight "
            f"{grid.loss_weights[grid.best[0]]:g} and batch ratio {grid.batch_ratios[grid.best[1]]:g}, "
            f"worst {percent(float(grid.accuracy[grid.accuracy == grid.accuracy].min()))} %"
            for grid in mixture_grids(sweep)
        ]
        return f"Heat map of validation accuracy. {'; '.join(parts)}."
    if name == "shifted_accuracy":
        parts = [
            f"{row.arm} {row.condition.words} on {row.split} {percent(row.shifted.mean)} %" for row in shift_rows(sweep)
        ]
        return f"Dot plot of test against shifted test accuracy. Means: {'; '.join(parts)}."
    parts = [f"{row.arm} {row.condition.words} {percent(row.test.mean)} %" for row in arm_rows(sweep) if row.test]
    kind = (
        "Line chart of test accuracy against shots" if name == "accuracy_against_shots" else "Dot plot of test accuracy"
    )
    return f"{kind}. Means: {'; '.join(parts)}."


def environment() -> Environment:
    """Return the templates' environment: escaped, strict about names, with the filters that write numbers."""
    templates = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(
        percent=percent,
        points=points,
        p_value=p_value,
        seconds=seconds,
        date=date,
        spread=spread_text,
        unbroken=unbroken,
        amount=amount,
    )
    return templates


def percent(fraction: float | None) -> str:
    """Return an accuracy in percent with one decimal; a dash where there is none."""
    return "–" if fraction is None or math.isnan(fraction) else f"{100 * fraction:.1f}"


def points(fraction: float) -> str:
    """Return a difference in percent points with its sign; a dash where there is none."""
    if math.isnan(fraction):
        return "–"
    text = f"{100 * fraction:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def p_value(value: float) -> str:
    """Return a p value as it is printed."""
    if math.isnan(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def amount(value: float) -> str:
    """Return a number of rows or words in three digits; a dash where there is none, ∞ where none is enough."""
    return "–" if math.isnan(value) else "∞" if math.isinf(value) else f"{value:,.3g}".replace("-", "−")


def seconds(value: float) -> str:
    """Return a duration for a person."""
    if math.isnan(value):
        return "–"
    if value < 120:
        return f"{value:.1f} s"
    hours, minutes = divmod(round(value / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def date(milliseconds: int) -> str:
    """Return a point in time, UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M") if milliseconds else "–"


def spread_text(value: Any) -> str:
    """Return mean ± standard deviation in percent; the mean alone for one seed."""
    if value is None:
        return "–"
    return percent(value.mean) if math.isnan(value.std) else f"{percent(value.mean)} ± {percent(value.std)}"


def unbroken(text: str) -> str:
    """Return text whose numbers stay on one line with what belongs to them."""
    return text.replace(" ± ", "\u00a0±\u00a0").replace(" %", "\u00a0%").replace(" = ", "\u00a0=\u00a0")
