"""The self-supervised objective: sequences in, predicted tokens out, selection by a linear probe on validation.

In: an experiment and its `SequenceData`. Out: what `uml_core.training.run.TrainingRun` asks of an objective. The
representation is the mean of the trunk's output over a sequence; the trunk is never fitted to a label.

Shape legend: N sequences, H shared width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from uml_core.config import Experiment
from uml_core.data.sequence_data import SequenceData, SequenceRows, token_positions
from uml_core.feed.embeddings import as_tensor
from uml_core.feed.mixing import Part
from uml_core.feed.sequences import SequenceBatch, SequenceFeed
from uml_core.gradients.autograd import AutogradGradient, autocast_of
from uml_core.gradients.batch import Gradient
from uml_core.gradients.ranks import RankContext
from uml_core.models.linear_probe import LinearProbe
from uml_core.models.sequence.sequence_model import SequenceModel, build_sequence_model
from uml_core.models.shared_head import Classifier, Features
from uml_core.training.objective import Objective
from uml_core.transfer.start import start_blocks

ROWS_AT_ONCE = 16_384  # tokens in one pass of the trunk


class SelfSupervisedObjective(Objective):
    """Next-token or masked-token prediction over all corpora, one shared trunk."""

    def __init__(self, experiment: Experiment, data: SequenceData, ranks: RankContext) -> None:
        super().__init__(experiment, data, ranks)
        self.model: SequenceModel = build_sequence_model(experiment, data).to(ranks.device)
        self._frozen = start_blocks(experiment, self.model.trunk)
        self._feed = SequenceFeed(data, self._plan, self.model, seed=experiment.seed, ranks=ranks)

    def _part(self, step: int, corpora: Sequence[str], part: Part) -> SequenceBatch | None:
        batch, frozen = self._feed.batch(step, corpora, part), self._frozen.at(step)
        return replace(batch, frozen=frozen) if batch is not None and frozen else batch

    def gradient(self) -> Gradient:
        return AutogradGradient(
            self.model,
            self._plan.loss_weights(0),
            world_size=self._ranks.world_size,
            autocast=autocast_of(self._experiment.train.precision, self._ranks.device) or contextlib.nullcontext,
        )

    def fit_probe(self) -> LinearProbe:
        """Fit a probe to the target's labelled train rows, on the model as it is."""
        labelled = self._data.labelled
        features_NH = sequence_features(self.model, self._data.target, labelled)
        return LinearProbe.fit(features_NH, labelled.labels, len(self._data.classes))

    def validate(self) -> tuple[float, float]:
        val = self._data.val
        return self.fit_probe().score(sequence_features(self.model, self._data.target, val), val.labels)

    def features(self, corpus: str, rows: SequenceRows) -> Features:
        return sequence_features(self.model, corpus, rows)

    def classifier(self) -> Classifier:
        return self.fit_probe().probabilities

    def predictor(self) -> Any:
        from uml_core.encoders import store_precision  # they take seconds; only a finished run needs them
        from uml_core.serving.sequence_predictor import SequencePredictor

        probe, precision, classes = self.fit_probe(), store_precision(self._experiment), self._data.classes
        return SequencePredictor.from_model(self._experiment, self.model, probe, classes, precision=precision)

    def target_path(self) -> list[nn.Module]:
        model, target = self.model, self._data.target
        return [model.inputs[target], model.outputs[target], model.trunk]


@torch.inference_mode()
def sequence_features(model: SequenceModel, corpus: str, rows: SequenceRows) -> Features:
    """The trunk's mean output over each sequence (N, H); leaves the model's mode as it was."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    tokens, starts, lengths = as_tensor(rows.table.tokens), rows.starts, rows.lengths
    features, first = [np.empty((0, model.config.width), dtype=np.float32)], 0
    for last in _cuts(lengths):
        indices = torch.from_numpy(token_positions(starts[first:last], lengths[first:last]))
        piece = tokens.index_select(0, indices).to(device)
        features.append(model.features(corpus, piece, lengths[first:last]).float().cpu().numpy())
        first = last
    model.train(was_training)
    return np.concatenate(features)


def _cuts(lengths: npt.NDArray[np.int64]) -> list[int]:
    """Where to cut N sequences so that a piece has about ROWS_AT_ONCE tokens."""
    pieces = np.cumsum(lengths) // ROWS_AT_ONCE
    return [*np.flatnonzero(np.diff(pieces)) + 1, len(lengths)] if len(lengths) else []
