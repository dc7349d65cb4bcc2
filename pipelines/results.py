"""What the steps end with, as Python objects: named fields, and the words of the command line.

A result holds every key of the JSON object that its step prints last; those that are named here are promised. A
notebook shows its words.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict

from pipelines.command_line import Summary

if TYPE_CHECKING:
    import pandas as pd


class Facts(BaseModel):
    """Named fields, and whatever else a step says."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)


class Result(Facts):
    """Base of all: `text` is what the command line says."""

    text: str

    @classmethod
    def of(cls, summary: Summary) -> Self:
        return cls.model_validate({"text": summary.text, **summary.results})

    def __repr__(self) -> str:
        return self.text

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.text)}</pre>"


class EmbeddedCorpus(Facts):
    fingerprint: str
    rows: int
    rejected_rows: int
    dim: int
    up_to_date: bool
    """Whether there was nothing to do."""


class Embedded(Result):
    store: str
    corpora: Mapping[str, EmbeddedCorpus]


class Interval(Facts):
    """A mean difference with its 95 % interval, in fractions."""

    mean: float
    low: float
    high: float


class Judgement(Facts):
    verdict: str
    """helps, neutral, harms, or not enough evidence."""
    why: str
    gain: Interval
    """Over the best alternative."""
    worth: Interval
    """Over the same head without it."""


class Advice(Result):
    target: str
    shots: int | None
    corpora: Mapping[str, Judgement]
    bridges: Mapping[str, Judgement]
    piles: Mapping[str, Judgement]
    redundancy: Mapping[str, float | None]


class TrainedRun(Facts):
    run_id: str
    val_accuracy: float
    test_accuracy: float | None
    model_uri: str


class TrainedSeed(TrainedRun):
    seed: int
    twin: TrainedRun | None = None


class Trained(Result):
    run_id: str
    """Of several seeds, the one that validates best."""
    model_uri: str
    model: str
    """models:/NAME/VERSION."""
    val_accuracy: float | None = None
    """None of several seeds, which have their own."""
    test_accuracy: float | None = None
    twin: TrainedRun | None = None
    test_difference_points: float | None = None
    """Above the twin's, in points."""
    seeds: tuple[TrainedSeed, ...] = ()


class Swept(Result):
    run_id: str
    space: str
    trials: int
    failed: int
    wall_s: float
    verdict: str
    verdict_kind: str
    model: str
    """The registered model that the verdict ships; "" where there is none."""


class EvaluatedRun(Facts):
    run_id: str
    metrics: Mapping[str, float]
    """By MLflow's names."""


class Evaluated(Result):
    """Its keys are MLflow's names, which no field can have: the properties group them."""

    @property
    def against(self) -> Mapping[str, float]:
        """The comparison with other runs; empty without one."""
        return {name: value for name, value in (self.model_extra or {}).items() if name.startswith("against/")}

    @property
    def runs(self) -> tuple[EvaluatedRun, ...]:
        found = self.model_extra or {}
        own = {name: value for name, value in found.items() if name not in self.against}
        return tuple(
            EvaluatedRun(run_id=run["run_id"], metrics={name: run[name] for name in run if name != "run_id"})
            for run in found.get("runs", [own])
        )

    @property
    def run_id(self) -> str:
        """Of the first run."""
        return self.runs[0].run_id

    @property
    def metrics(self) -> Mapping[str, float]:
        """Of the first run."""
        return self.runs[0].metrics


class Reported(Result):
    report: str
    """The page's path."""
    verdict: str
    verdict_kind: str
    figures: tuple[str, ...]


class Predicted(Result):
    output: str
    rows: int
    rejected_rows: int

    def frame(self) -> pd.DataFrame:
        """Columns id, prediction, probability, and those of `top`."""
        import pandas as pd

        return pd.read_parquet(self.output)


class Exported(Result):
    output: str
    files: tuple[str, ...]
    shape: tuple[int, int]
    """Classes, and the embedding's width."""


class Directions(Result):
    targets: tuple[str, ...]
    rows: tuple[Mapping[str, Any], ...]
    """One of every target and subset of the others."""


class Bridge(Result):
    output: str
    classes: int
    dim: int
