"""What a training run needs of an objective: a model, any step's batch, its gradient, and how the model is measured.

The loop around it (`uml_core.training.run`) is the same for all; `build_objective` chooses the one that data are for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import nn

from uml_core.config import Experiment
from uml_core.data.sequence_data import SequenceData
from uml_core.data.training_data import TrainingData
from uml_core.gradients.batch import Gradient, StepBatch
from uml_core.gradients.ranks import RankContext
from uml_core.models.shared_head import Classifier, Features
from uml_core.training.supervised import SupervisedObjective


class Objective(Protocol):
    """A model with its batches, gradients and measures."""

    @property
    def model(self) -> Any:
        """The model that is trained."""

    def batch(self, step: int, corpora: Sequence[str]) -> StepBatch | None:
        """A step's batch for some corpora, or None where none of them has a sample in it."""

    def batch_rows(self, step: int, corpus: str) -> list[int]:
        """The row numbers of a corpus's table in a step's batch, over all ranks: for messages."""

    def gradient(self) -> Gradient:
        """What sets the gradients of a batch's weighted loss; asked for once, when training begins."""

    def learning_rate_scales(self) -> dict[str, float]:
        """The factor on optim.lr of each parameter that has one, by its name in the model."""

    def validate(self) -> tuple[float, float]:
        """Validation accuracy in [0, 1] and mean NLL in nats of the model as it is."""

    def features(self, corpus: str, rows: Any) -> Features:
        """The representation (N, H) of some rows of a corpus, of the model as it is."""

    def classifier(self) -> Classifier:
        """What turns the target's features into class probabilities, of the model as it is."""

    def predictor(self) -> Any:
        """The target model as it is used, of the model as it is (`uml_core.serving.predictor.Predictor`).

        Its encoder runs in the arithmetic in which the model was measured: a frozen one's is the store's.
        """

    def target_path(self) -> list[nn.Module]:
        """The modules the target goes through: a matched baseline trains as many parameters."""


def build_objective(experiment: Experiment, data: TrainingData | SequenceData, ranks: RankContext) -> Objective:
    """The objective that an experiment's data is for, with its model built and its data on the device."""
    if isinstance(data, SequenceData):
        from uml_core.training.self_supervised import SelfSupervisedObjective  # scikit-learn takes a second

        return SelfSupervisedObjective(experiment, data, ranks)
    if experiment.model.backbone != "frozen":
        from uml_core.feed.pictures import PictureData
        from uml_core.training.fine_tuning import FineTuningObjective  # encoders take seconds

        assert isinstance(data, PictureData), "a trained backbone needs pictures"
        return FineTuningObjective(experiment, data, ranks)
    return SupervisedObjective(experiment, data, ranks)
