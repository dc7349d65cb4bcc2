"""The supervised objective: embeddings through the shared head, cross-entropy, validated by the head itself.

In: an experiment and its `TrainingData`. Out: what `uml_core.training.TrainingRun` asks of an objective.

Shape legend: N rows, C classes, D embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from uml_core.config import Experiment
from uml_core.corpora.training_data import LabelledRows, TrainingData
from uml_core.feed import Batch, ResidentFeed, gathered
from uml_core.gradients import AutogradGradient, Gradient, autocast_of
from uml_core.mixing import MixingPlan
from uml_core.models import SharedHeadModel, build_model
from uml_core.models.shared_head_gradient import SharedHeadGradient
from uml_core.objective import Place


class SupervisedObjective:
    """Cross-entropy of every corpus through one head."""

    def __init__(self, experiment: Experiment, data: TrainingData, place: Place) -> None:
        self._experiment, self._classes = experiment, data.classes
        self._plan, self._place = MixingPlan.of(experiment), place
        self._feed = ResidentFeed(
            data,
            self._plan,
            seed=experiment.seed,
            device=place.device,
            rank=place.rank,
            world_size=place.world_size,
        )
        self.model: SharedHeadModel = build_model(experiment, data).to(place.device)
        self._precision, self._normalize = experiment.train.precision, experiment.model.normalize
        self._target, self._val = data.target, gathered(data.val, place.device)

    def batch(self, step: int, corpora: Sequence[str]) -> Batch | None:
        """Return a step's batch for some corpora; None where none of them has a sample in it."""
        batch = self._feed.batch(step, corpora)
        if not batch.embeddings or not self._normalize:
            return batch if batch.embeddings else None
        normalised = {corpus: nn.functional.normalize(value, dim=-1) for corpus, value in batch.embeddings.items()}
        return Batch(normalised, batch.labels, batch.global_counts)

    def gradient(self) -> Gradient:
        """Return the closed form in float32, autograd where products are cast to bfloat16."""
        weights, world_size = self._plan.loss_weights(0), self._place.world_size
        autocast = autocast_of(self._precision, self._place.device)
        if autocast is not None:
            return AutogradGradient(self.model, weights, world_size=world_size, autocast=autocast)
        return SharedHeadGradient(self.model, weights, world_size=world_size)

    def validate(self) -> tuple[float, float]:
        """Return accuracy in [0, 1] and mean NLL in nats on the target's validation rows."""
        return evaluate_head(self.model, self._target, *self._val, normalize=self._normalize)

    def accuracies(self, rows: Mapping[str, LabelledRows]) -> dict[str, float]:
        """Return the accuracy in [0, 1] on some sets of the target's rows."""
        return {
            name: evaluate_rows(self.model, self._target, part, normalize=self._normalize)
            for name, part in rows.items()
        }

    def predictor(self, precision: str) -> Any:
        """Return the target's path folded into one matrix, with its encoder's settings."""
        from uml_core.serving import TargetPredictor  # encoders take seconds, and only a finished run needs them

        return TargetPredictor.of(self._experiment, self.model, self._classes, precision=precision)

    def target_path(self) -> list[nn.Module]:
        """Return the target's projection and the head."""
        return [self.model.projections[self._target], self.model.head]


@torch.inference_mode()
def evaluate_head(
    model: SharedHeadModel, corpus: str, embedding_ND: Tensor, labels_N: Tensor, *, normalize: bool = False
) -> tuple[float, float]:
    """Return accuracy in [0, 1] and mean NLL in nats of one corpus's rows; leaves the model's mode as it was."""
    was_training = model.training
    model.eval()
    if normalize:
        embedding_ND = nn.functional.normalize(embedding_ND, dim=-1)
    logits_NC = model.logits(corpus, embedding_ND)
    model.train(was_training)
    accuracy = (logits_NC.argmax(dim=1) == labels_N).float().mean().item()
    return accuracy, nn.functional.cross_entropy(logits_NC.float(), labels_N).item()


def evaluate_rows(model: SharedHeadModel, corpus: str, rows: LabelledRows, *, normalize: bool) -> float:
    """Return the accuracy in [0, 1] on some rows of the target."""
    device = next(model.parameters()).device
    return evaluate_head(model, corpus, *gathered(rows, device), normalize=normalize)[0]
