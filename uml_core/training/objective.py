"""What a training run needs of an objective; the loop around it is the same for all (`uml_core.training.run`).

An objective is a model, the batch of any step, the gradient of a batch, and how the model is validated and measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import nn

from uml_core.gradients.autograd import Gradient, StepBatch
from uml_core.models.representation import Classifier, Features


class Objective(Protocol):
    """A model with its batches, gradients and measures."""

    @property
    def model(self) -> Any:
        """The model that is trained."""

    def batch(self, step: int, corpora: Sequence[str]) -> StepBatch | None:
        """Return a step's batch for some corpora, or None where none of them has a sample in it."""

    def batch_rows(self, step: int, corpus: str) -> list[int]:
        """Return the row numbers of a corpus's table in a step's batch, over all ranks: for messages."""

    def gradient(self) -> Gradient:
        """Return what sets the gradients of a batch's weighted loss; asked for once, when training begins."""

    def learning_rate_scales(self) -> dict[str, float]:
        """Return the factor on optim.lr of each parameter that has one, by its name in the model."""

    def validate(self) -> tuple[float, float]:
        """Return validation accuracy in [0, 1] and mean NLL in nats of the model as it is."""

    def features(self, corpus: str, rows: Any) -> Features:
        """Return the representation (N, H) of some rows of a corpus, of the model as it is."""

    def classifier(self) -> Classifier:
        """Return what turns the target's features into class probabilities, of the model as it is."""

    def predictor(self) -> Any:
        """Return the target model as it is used, of the model as it is (`uml_core.serving.predictor.Predictor`).

        Its encoder runs in the arithmetic in which the model was measured: a frozen one's is the store's.
        """

    def target_path(self) -> list[nn.Module]:
        """Return the modules the target goes through: a matched baseline trains as many parameters."""
