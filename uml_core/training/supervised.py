"""The supervised objective: embeddings through the shared head, cross-entropy, validated by the head itself.

In: an experiment and its `TrainingData`. Out: what `uml_core.training.run.TrainingRun` asks of an objective.

Shape legend: N rows, C classes, D embedding width, H shared width.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from uml_core.config import Experiment
from uml_core.data.labelled_rows import LabelledRows
from uml_core.data.training_data import TrainingData
from uml_core.errors import InputError
from uml_core.feed.embeddings import EmbeddingFeed, WholeFeed, as_tensor
from uml_core.feed.mixing import MixingPlan, Part
from uml_core.gradients.autograd import AutogradGradient, autocast_of
from uml_core.gradients.batch import Batch, Gradient
from uml_core.gradients.closed_form import SharedHeadGradient
from uml_core.gradients.ranks import RankContext
from uml_core.models.shared_head import Classifier, Features, SharedHeadModel, build_model
from uml_core.store.mapped_table import is_mapped
from uml_core.training.objective import Objective

EVALUATED_ROWS = 16_384  # at once: a corpus in a file is never in memory as a whole


class SupervisedObjective(Objective):
    """Cross-entropy of every corpus through one head."""

    def __init__(self, experiment: Experiment, data: TrainingData, ranks: RankContext) -> None:
        super().__init__(experiment, data, ranks)
        self._solves = experiment.optim.name == "lbfgs"
        self.model: SharedHeadModel = build_model(experiment, data).to(ranks.device)
        if self._solves:
            _check_convex(self.model, self._plan)
        self._normalize, self._target = experiment.model.normalize, data.target
        # Validation rows stay on the device, as they are read at every evaluation; those in a file are read again.
        is_kept = not is_mapped(data.val.embeddings)
        self._val = list(evaluation_blocks(data.val, ranks.device)) if is_kept else None

    @cached_property
    def _feed(self) -> EmbeddingFeed | WholeFeed:
        """Of the corpora that are stepped over: a head that is solved, or measured as it starts, has none."""
        kind = WholeFeed if self._solves else EmbeddingFeed
        return kind(self._experiment, self._data, self._plan, self._ranks)

    def _part(self, step: int, corpora: Sequence[str], part: Part) -> Batch | None:
        batch = self._feed.batch(step, corpora, part)
        if not batch.embeddings or not self._normalize:
            return batch if batch.embeddings else None
        normalised = {corpus: nn.functional.normalize(value, dim=-1) for corpus, value in batch.embeddings.items()}
        return replace(batch, embeddings=normalised)

    def gradient(self) -> Gradient:
        """The closed form in float32; autograd where products are cast to bfloat16 or batches come in parts."""
        weights, world_size = self._plan.loss_weights(0), self._ranks.world_size
        autocast = autocast_of(self._experiment.train.precision, self._ranks.device)
        if self._solves or (autocast is None and len(self._parts) == 1):
            smoothing = self._experiment.train.label_smoothing
            return SharedHeadGradient(self.model, weights, world_size=world_size, label_smoothing=smoothing)
        autocast = autocast or contextlib.nullcontext
        return AutogradGradient(self.model, weights, world_size=world_size, autocast=autocast)

    def validate(self) -> tuple[float, float]:
        blocks = evaluation_blocks(self._data.val, self._ranks.device) if self._val is None else self._val
        return evaluate_blocks(self.model, self._target, blocks, normalize=self._normalize)

    def features(self, corpus: str, rows: LabelledRows) -> Features:
        """Some rows of a corpus in the shared space (N, H): projected, not scaled."""
        blocks = evaluation_blocks(rows, self._ranks.device)
        return np.concatenate(
            [head_features(self.model, corpus, part, normalize=self._normalize) for part, _ in blocks]
        )

    def classifier(self) -> Classifier:
        return head_classifier(self.model, self._target)

    def predictor(self) -> Any:
        from uml_core.encoders import store_precision  # they take seconds, and only a finished run needs them
        from uml_core.serving.target_predictor import TargetPredictor

        precision = store_precision(self._experiment)
        return TargetPredictor.from_model(self._experiment, self.model, self._data.classes, precision=precision)

    def target_path(self) -> list[nn.Module]:
        return [self.model.projections[self._target], self.model.head]


def _check_convex(model: SharedHeadModel, plan: MixingPlan) -> None:
    """Raise InputError where a corpus that takes part has a projection: head times projection is not convex."""
    for corpus in plan.corpora:
        projection = model.projections[corpus]
        if isinstance(projection, nn.Linear):
            raise InputError(
                f"optim.name is lbfgs, and corpus {corpus}, {projection.in_features} wide, is projected to the shared "
                f"width {model.shared_width}; a solver needs corpora of one width: mixing.loss_weight 0 leaves one "
                "out, or set optim.name=adamw"
            )


@torch.inference_mode()
def evaluate_head(
    model: SharedHeadModel, corpus: str, embedding_ND: Tensor, labels_N: Tensor, *, normalize: bool = False
) -> tuple[float, float]:
    """Accuracy in [0, 1] and mean NLL in nats of one corpus's rows."""
    if normalize:
        embedding_ND = nn.functional.normalize(embedding_ND, dim=-1)
    logits_NC = model.logits(corpus, embedding_ND)
    accuracy = (logits_NC.argmax(dim=1) == labels_N).float().mean().item()
    return accuracy, nn.functional.cross_entropy(logits_NC.float(), labels_N).item()


def evaluate_blocks(
    model: SharedHeadModel, corpus: str, blocks: Iterable[tuple[Tensor, Tensor]], *, normalize: bool
) -> tuple[float, float]:
    """Accuracy in [0, 1] and mean NLL in nats over blocks of one corpus's rows (N, D) with labels (N,)."""
    measured = [(evaluate_head(model, corpus, *block, normalize=normalize), len(block[1])) for block in blocks]
    if len(measured) == 1:
        return measured[0][0]
    total = sum(num_rows for _, num_rows in measured)
    accuracy = sum(each[0] * num_rows for each, num_rows in measured) / total
    return accuracy, sum(each[1] * num_rows for each, num_rows in measured) / total


def evaluation_blocks(rows: LabelledRows, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield embeddings (N, D) and labels (N,) of some rows on a device, a block at a time."""
    for embedding_ND, labels_N in rows.blocks(EVALUATED_ROWS):
        yield torch.from_numpy(embedding_ND).to(device), as_tensor(labels_N).to(device)


@torch.inference_mode()
def head_features(model: SharedHeadModel, corpus: str, embedding_ND: Tensor, *, normalize: bool) -> Features:
    """Embeddings (N, D) of a corpus in the shared space (N, H)."""
    if normalize:
        embedding_ND = nn.functional.normalize(embedding_ND, dim=-1)
    features_NH: Features = model.projections[corpus](embedding_ND).float().cpu().numpy()
    return features_NH


def head_classifier(model: SharedHeadModel, corpus: str) -> Classifier:
    """The softmax of a model's head under a corpus's scale, on rows in the shared space."""
    head, scale = copy.deepcopy(model.head).cpu().requires_grad_(False), model.scales[corpus].detach().cpu()

    def probabilities(features_NH: Features) -> npt.NDArray[np.float64]:
        logits_NC = head(torch.from_numpy(features_NH)) * scale
        probabilities_NC: npt.NDArray[np.float64] = torch.softmax(logits_NC.double(), dim=1).numpy()
        return probabilities_NC

    return probabilities
