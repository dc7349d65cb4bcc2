"""A trained run as analyses see it: embeddings of any corpus in the shared space, and the head's rows there.

In: an experiment, its trained model and its data, and what is known of the raw rows. Out: plain arrays. What an
analysis makes of them is an `AnalysisResult`.

Shape legend: N rows, D embedding width, H shared width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from uml_core.analysis.raw_rows import RawRows
from uml_core.config import Experiment
from uml_core.data.labelled_rows import LabelledRows
from uml_core.data.training_data import TrainingData
from uml_core.feed.embeddings import gathered
from uml_core.figures.drawing import ReportFigure
from uml_core.models.shared_head import SharedHeadModel
from uml_core.training.supervised import head_features

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class AnalysisResult:
    """Metrics by their MLflow names (analysis/...), figures, CSV tables by file name, and lines of summary."""

    metrics: dict[str, float] = field(default_factory=dict)
    figures: tuple[ReportFigure, ...] = ()
    tables: dict[str, str] = field(default_factory=dict)
    summary: tuple[str, ...] = ()


@dataclass(frozen=True)
class MatchedRows:
    """Rows of the target and of another corpus that belong together: row by row, or only by class."""

    target: LabelledRows
    other: LabelledRows
    by_class: bool
    given: int = 0  # true pairs before sampling

    @property
    def words(self) -> str:
        """For a sentence."""
        if self.by_class:
            return "class-mean pairs (no true pairs were given)"
        return "true pairs" + (f" drawn by lot from {self.given}" if self.given > len(self.target) else "")

    def by_pair(self, values_NU: Floats, side: LabelledRows) -> Floats:
        """What was computed of one side's rows, pair by pair; by class, the mean of each class that both sides have."""
        if not self.by_class:
            return values_NU
        both = np.intersect1d(self.target.labels, self.other.labels)
        return class_means(values_NU, side.labels, int(side.labels.max(initial=-1)) + 1)[both]


@dataclass(frozen=True)
class TrainedRun:
    """What an analysis reads. `raw` and `pairs` are for evaluation only: no training ever sees a row's identity."""

    experiment: Experiment
    model: SharedHeadModel
    data: TrainingData
    raw: Mapping[str, RawRows] = field(default_factory=dict)  # corpus -> ids and, where readable, raw rows
    pairs: Mapping[str, Codes] | None = None  # corpus -> table rows (P,): row p of each belong together
    plane_classes: tuple[str, str] | None = None  # None: the two most confused
    probabilities: Callable[[str], Floats] | None = None  # of a split of the target (N, C), by whatever head

    @property
    def held_out(self) -> LabelledRows:
        """The target's test rows; its validation rows where it has no test split."""
        return self.data.val if self.data.test is None else self.data.test

    @property
    def held_out_probabilities(self) -> Floats:
        """The class probabilities of `held_out` (N, C)."""
        assert self.probabilities is not None, "this run was given no head"
        return self.probabilities("val" if self.data.test is None else "test")

    @property
    def held_out_words(self) -> str:
        """The name of the split that `held_out` returns."""
        return "validation" if self.data.test is None else "test"

    def embeddings(self, corpus: str, rows: LabelledRows, *, model: SharedHeadModel | None = None) -> Floats:
        """Rows in the shared space (N, H) of the trained (or another) model: projected, not scaled."""
        chosen = model or self.model
        embedding_ND, _ = gathered(rows, next(chosen.parameters()).device)
        with torch.inference_mode():
            shared_NH = head_features(chosen, corpus, embedding_ND, normalize=self.experiment.model.normalize)
        return shared_NH.astype(np.float64)

    def head(self, corpus: str, *, model: SharedHeadModel | None = None) -> Floats:
        """The head's rows (C, H), turned around where the corpus's learned scale is negative.

        Only the sign of a scale decides who wins; its size scales all logits alike.
        """
        chosen = model or self.model
        scale = float(chosen.scales[corpus].detach())
        rows_CH: Floats = chosen.head.weight.detach().double().cpu().numpy()
        return rows_CH * (-1.0 if scale < 0 else 1.0)

    def matched(self, corpus: str, *, at_most: int | None = None) -> MatchedRows:
        """The user's true pairs of the target and a corpus, else all held-out and all train rows, matched by class.

        More true pairs than `at_most` are drawn by lot.
        """
        target = self.data.target
        if self.pairs is None or corpus not in self.pairs:
            return MatchedRows(self.held_out, self.data.train[corpus], by_class=True)
        order = np.random.default_rng(self.experiment.seed).permutation(len(self.pairs[target]))
        chosen = np.sort(order[:at_most])
        target_rows, other_rows = (self._table_rows(name, self.pairs[name][chosen]) for name in (target, corpus))
        return MatchedRows(target_rows, other_rows, by_class=False, given=len(order))

    def _table_rows(self, corpus: str, chosen: Codes) -> LabelledRows:
        """Rows of a corpus's table; one outside the run's splits has class −1."""
        known = [self.data.train[corpus]]
        if corpus == self.data.target:
            known += [*self.data.shifted.values(), self.data.val, self.held_out]
        labels = np.full(len(known[0].embeddings), -1, dtype=np.int64)
        for rows in known:
            labels[rows.rows] = rows.labels
        return LabelledRows(known[0].embeddings, chosen, labels[chosen])


def class_means(values_NU: Floats, labels_N: Codes, num_classes: int) -> Floats:
    """Each class's mean row (C, U); NaN for a class without rows."""
    means_CU: Floats = pd.DataFrame(values_NU).groupby(labels_N).mean().reindex(range(num_classes)).to_numpy()
    return means_CU
