"""The report: one HTML file that needs nothing else, and its figures.

In: the runs of one MLflow experiment as `RunRecord`s. Out: a `Report`, whose first sentence is the verdict.

    report = build_report("pets", experiment_runs(uri, "pets"), tracking_uri=uri)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from uml_core.figures import words
from uml_core.figures.drawing import ReportFigure
from uml_core.reporting.classes import ClassGains, class_gains
from uml_core.reporting.collect import DECIDING_SPACES, MIXING_RATIO, SweepResults, latest_sweeps, training_runs
from uml_core.reporting.directions import directions_of
from uml_core.reporting.exchange import ExchangeSection, exchange_section
from uml_core.reporting.mixtures import mixture_grids
from uml_core.reporting.space_rows import (
    AdditionRow,
    BackboneRow,
    SentenceRow,
    SubsetRow,
    addition_rows,
    backbone_rows,
    sentence_rows,
    subset_rows,
)
from uml_core.reporting.sweep_figures import class_figures, sweep_figures
from uml_core.reporting.tables import (
    FrontRow,
    arm_notes,
    arm_rows,
    cost_rows,
    failed_trials,
    front_rows,
    mixture_rows,
    shift_rows,
)
from uml_core.reporting.verdict import Verdict, equal_budgets, verdict_of
from uml_core.tracking.records import RunRecord

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
    classes: list[ClassGains]

    @property
    def subsets(self) -> list[SubsetRow]:
        """Arms of space modalities with their corpora."""
        return subset_rows(self.sweep)

    @property
    def backbones(self) -> list[BackboneRow]:
        """What training the encoder does to the gain, in space finetune."""
        return backbone_rows(self.sweep)

    @property
    def additions(self) -> list[AdditionRow]:
        """What one more corpus changes, in space modalities."""
        return addition_rows(self.sweep)

    @property
    def sentences(self) -> list[SentenceRow]:
        """Arms of space text with the rows they had."""
        return sentence_rows(self.sweep)

    @property
    def fronts(self) -> list[FrontRow]:
        """Trials that no other beats in accuracy and cost, where the cost was an objective."""
        return front_rows(self.sweep)

    @property
    def equal_budgets(self) -> bool:
        """Whether headline and baseline searched equally much under every condition."""
        return all(equal_budgets(self.sweep, condition) for condition in self.sweep.conditions)

    @property
    def settings(self) -> dict[str, str]:
        """The resolved experiment the sweep started from."""
        return dict(sorted(self.sweep.parent.params.items()))

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
            deciding_spaces=DECIDING_SPACES,
            sections=sections,
            directions=directions_of(sweeps),
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


def _in_order(sweeps: Mapping[tuple[str, str], SweepResults]) -> list[SweepResults]:
    """Return the sweeps, the one whose verdict counts first: the newest with controls, mixing_ratio, newest others."""
    rank = {**dict.fromkeys(DECIDING_SPACES, 0), MIXING_RATIO: 1}
    return sorted(sweeps.values(), key=lambda sweep: (rank.get(sweep.space, 2), -sweep.parent.start_time_ms))


def _without_sweeps(plain: Sequence[RunRecord]) -> Verdict:
    count = f"{len(plain)} plain training run{' without a sweep' if len(plain) == 1 else 's without a sweep'}"
    verb = "does" if len(plain) == 1 else "do"
    text = f"Undecided: {count} {verb} not show whether the unpaired data helps; to decide, run {DECIDING_COMMAND}."
    return Verdict("undecided", text)


def _section(sweep: SweepResults) -> SweepSection:
    exchange, classes = exchange_section(sweep), class_gains(sweep)
    drawings = (
        *sweep_figures(sweep),
        *class_figures(sweep, classes),
        *([exchange.figure] if exchange is not None else []),
    )
    mixtures = mixture_rows(sweep) if mixture_grids(sweep) else []
    return SweepSection(
        sweep, verdict_of(sweep), drawings, arm_rows(sweep), shift_rows(sweep), mixtures, exchange, classes
    )


def environment() -> Environment:
    """Return the templates' environment: escaped, strict about names, with the filters that write numbers."""
    templates = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(words.FILTERS)
    return templates
