"""A trained run as evaluators see it: labels, features and class probabilities of the target's rows, by split.

In: an objective with its best weights, and its data. Out: plain arrays, each worked out once whoever asks.
Supervised, fine-tuned and self-supervised runs look the same from here.

An evaluator is a function from a run to (name, value) pairs. A float is a metric under that name. Text is an artifact
of that file name. A `ReportFigure` becomes NAME.svg with its caption in NAME.txt. Files lie below
evaluation/ of the run. Its docstring says when a number must not be compared with another; it raises InputError where
it asks for what the run does not have. Your own is a function in a file:

    def evaluate_confidence(run):  # --evaluators test,my_evaluators.py:evaluate_confidence
        yield "confidence/mean", float(run.probabilities("test").max(axis=1).mean())

Shape legend: N rows, D width of an input, H width of the representation, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from uml_core.config import Experiment
from uml_core.gradients.ranks import RankContext
from uml_core.models.shared_head import Classifier, Features
from uml_core.training.objective import Objective
from uml_core.training.run import build_objective

if TYPE_CHECKING:
    from uml_core.figures.drawing import ReportFigure  # matplotlib, of which training has no use

Probabilities = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]


class EvaluatedRun:
    """What an evaluator may read of a run. Splits are train (the labelled rows), val, test and shifted test sets."""

    def __init__(
        self,
        experiment: Experiment,
        data: Any,
        objective: Objective,
        *,
        ids: Callable[[str], tuple[str, ...]] | None = None,
        raw: Callable[[str], dict[str, Any]] = lambda corpus: {},
    ) -> None:
        """Take a run whose best weights are loaded, with its `TrainingData` or `SequenceData`.

        `ids` gives a corpus's ids in the order of its table, `raw` its raw rows by id where they can still be read.
        """
        self.experiment, self.data, self.objective = experiment, data, objective
        self.table_ids, self.raw_rows = ids or _no_ids, raw
        self.splits: dict[str, Any] = {
            "train": data.labelled,
            "val": data.val,
            **({} if data.test is None else {"test": data.test}),
            **data.shifted,
        }
        self._features: dict[str, Features] = {}
        self._probabilities: dict[str, Probabilities] = {}

    @property
    def target(self) -> str:
        return str(self.data.target)

    @property
    def classes(self) -> tuple[str, ...]:
        classes: tuple[str, ...] = self.data.classes
        return classes

    @property
    def has_test(self) -> bool:
        return "test" in self.splits

    @property
    def shifted(self) -> tuple[str, ...]:
        return tuple(self.data.shifted)

    @property
    def tested(self) -> tuple[str, ...]:
        """The test split, where there is one, and the shifted test sets."""
        return (*(("test",) if self.has_test else ()), *self.shifted)

    def labels(self, split: str) -> Codes:
        """The class codes of a split's rows (N,)."""
        labels: Codes = self.splits[split].labels
        return labels

    @property
    def train_rows(self) -> Codes:
        """How many labelled train rows of the target each class has (C,)."""
        counts = self.splits["train"].counts
        return np.bincount(self.labels("train"), counts, minlength=len(self.classes)).astype(np.int64)

    def raw_features(self, split: str) -> Features:
        """What needs no training (N, D): the encoder's embeddings, or the mean of the raw tokens."""
        features: Features = self.splits[split].raw_features()
        return features

    def features(self, split: str) -> Features:
        """The representation the target's path gives a split's rows, just before the classifier (N, H)."""
        if split not in self._features:
            self._features[split] = self.features_of(self.splits[split])
        return self._features[split]

    def features_of(self, rows: Any, corpus: str | None = None) -> Features:
        """The representation of any rows of the target, or of another corpus (N, H)."""
        return self.objective.features(corpus or self.target, rows)

    def probabilities(self, split: str) -> Probabilities:
        """The class probabilities of a split's rows (N, C)."""
        if split not in self._probabilities:
            self._probabilities[split] = self._classifier(self.features(split))
        return self._probabilities[split]

    @cached_property
    def _classifier(self) -> Classifier:
        return self.objective.classifier()

    def predicted(self, split: str) -> Codes:
        """The predicted class codes of a split's rows (N,)."""
        codes: Codes = self.probabilities(split).argmax(axis=1)
        return codes

    def accuracy(self, split: str) -> float:
        return float((self.predicted(split) == self.labels(split)).mean())

    def ids(self, split: str) -> tuple[str, ...]:
        """The ids of a split's rows: for pairing and for messages, never for training."""
        rows = self.splits[split]
        all_ids = self.table_ids(rows.corpus or self.target)
        return tuple(all_ids[row] for row in rows.rows)

    def untrained(self) -> EvaluatedRun:
        """The same run as initialised, before its first step."""
        objective = build_objective(self.experiment, self.data, RankContext.cpu())
        return EvaluatedRun(self.experiment, self.data, objective)


def _no_ids(corpus: str) -> tuple[str, ...]:
    raise AssertionError("a run inside a sweep is measured without ids")


Results = Iterator[tuple[str, "float | str | ReportFigure"]]
Evaluator = Callable[[EvaluatedRun], Results]
