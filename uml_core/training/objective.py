"""What a training run needs of an objective: a model, any step's batch, its gradient, and how the model is measured.

The loop around it (`uml_core.training.run`) is the same for all; `build_objective` there chooses the one that data are
for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import nn

from uml_core.config import Experiment
from uml_core.feed.mixing import MixingPlan, Part, SampleStream, parts_of
from uml_core.gradients.batch import Gradient, StepBatch, accumulated
from uml_core.gradients.ranks import RankContext
from uml_core.models.shared_head import Classifier, Features


class Objective(ABC):
    """A model with its batches, gradients and measures."""

    model: Any  # that is trained

    def __init__(self, experiment: Experiment, data: Any, ranks: RankContext) -> None:
        self._experiment, self._data, self._ranks = experiment, data, ranks
        self._plan, self._parts = MixingPlan.from_experiment(experiment), parts_of(experiment.train.accumulate)

    def batch(self, step: int, corpora: Sequence[str]) -> StepBatch | None:
        """A step's batch for some corpora, or None where none of them has a sample in it."""
        return accumulated(self._part(step, corpora, part) for part in self._parts)

    @abstractmethod
    def _part(self, step: int, corpora: Sequence[str], part: Part) -> StepBatch | None:
        """One of the parts that a step's batch is computed in."""

    def batch_rows(self, step: int, corpus: str) -> list[int]:
        """The row numbers of a corpus's table in a step's batch, over all ranks: for messages."""
        rows = self._data.train[corpus].rows
        if self._experiment.optim.name != "lbfgs":  # which takes all of them at every step
            stream = SampleStream(corpus, len(rows), self._experiment.seed)
            rows = rows[stream.rows(*self._plan.sample_range(corpus, step))]
        return list(map(int, rows))

    @abstractmethod
    def gradient(self) -> Gradient:
        """What sets the gradients of a batch's weighted loss; asked for once, when training begins."""

    def learning_rate_scales(self) -> dict[str, float]:
        """The factor on optim.lr of each parameter that has one, by its name in the model."""
        return {}

    @abstractmethod
    def validate(self) -> tuple[float, float]:
        """Validation accuracy in [0, 1] and mean NLL in nats of the model as it is."""

    @abstractmethod
    def features(self, corpus: str, rows: Any) -> Features:
        """The representation (N, H) of some rows of a corpus, of the model as it is."""

    @abstractmethod
    def classifier(self) -> Classifier:
        """What turns the target's features into class probabilities, of the model as it is."""

    @abstractmethod
    def predictor(self) -> Any:
        """The target model as it is used, of the model as it is (`uml_core.serving.predictor.Predictor`).

        Its encoder runs in the arithmetic in which the model was measured: a frozen one's is the store's.
        """

    @abstractmethod
    def target_path(self) -> list[nn.Module]:
        """The modules the target goes through: a matched baseline trains as many parameters."""
