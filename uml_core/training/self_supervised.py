"""The self-supervised objective: sequences in, predicted tokens out, selection by a linear probe on validation.

In: an experiment and its `SequenceData`. Out: what `uml_core.training.run.TrainingRun` asks of an objective.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from uml_core.config import Experiment
from uml_core.data.sequence_data import SequenceData, SequenceRows
from uml_core.feed.mixing import MixingPlan, Part, parts_of
from uml_core.feed.sequences import SequenceBatch, SequenceFeed
from uml_core.gradients.autograd import AutogradGradient, Gradient, StepBatch, accumulated, autocast_of
from uml_core.gradients.place import Place
from uml_core.models.linear_probe import LinearProbe
from uml_core.models.representation import Classifier, Features
from uml_core.models.sequence.sequence_model import SequenceModel, build_sequence_model
from uml_core.training.sequence_features import sequence_features
from uml_core.transfer import start_blocks


class SelfSupervisedObjective:
    """Next-token or masked-token prediction over all corpora, one shared trunk."""

    def __init__(self, experiment: Experiment, data: SequenceData, place: Place) -> None:
        self._experiment = experiment
        self._data, self._place, self._plan = data, place, MixingPlan.of(experiment)
        self._precision, self._parts = experiment.train.precision, parts_of(experiment.train.accumulate)
        self.model: SequenceModel = build_sequence_model(experiment, data).to(place.device)
        self._frozen = start_blocks(experiment, self.model.trunk)
        self._feed = SequenceFeed(data, self._plan, self.model, seed=experiment.seed, place=place)

    def batch(self, step: int, corpora: Sequence[str]) -> StepBatch | None:
        """Return a step's batch for some corpora."""
        return accumulated(self._part(step, corpora, part) for part in self._parts)

    def _part(self, step: int, corpora: Sequence[str], part: Part) -> SequenceBatch | None:
        batch, frozen = self._feed.batch(step, corpora, part), self._frozen.at(step)
        return replace(batch, frozen=frozen) if batch is not None and frozen else batch

    def batch_rows(self, step: int, corpus: str) -> list[int]:
        """Return the row numbers of a corpus's table in a step's batch, over all ranks."""
        return list(map(int, self._feed.rows(step, corpus)))

    def gradient(self) -> Gradient:
        """Return autograd's, under autocast where `train.precision` asks for bfloat16."""
        return AutogradGradient(
            self.model,
            self._plan.loss_weights(0),
            world_size=self._place.world_size,
            autocast=autocast_of(self._precision, self._place.device) or contextlib.nullcontext,
        )

    def learning_rate_scales(self) -> dict[str, float]:
        """Return no factors: every parameter is trained at optim.lr."""
        return {}

    def fit_probe(self) -> LinearProbe:
        """Fit a probe to the target's labelled train rows, on the model as it is."""
        labelled = self._data.labelled
        features_NH = sequence_features(self.model, self._data.target, labelled)
        return LinearProbe.fit(features_NH, labelled.labels, len(self._data.classes))

    def validate(self) -> tuple[float, float]:
        """Return the probe's validation accuracy in [0, 1] and mean NLL in nats."""
        val = self._data.val
        return self.fit_probe().score(sequence_features(self.model, self._data.target, val), val.labels)

    def features(self, corpus: str, rows: SequenceRows) -> Features:
        """Return the trunk's mean output over each sequence (N, H)."""
        return sequence_features(self.model, corpus, rows)

    def classifier(self) -> Classifier:
        """Return a probe fitted to the target's labelled train rows."""
        return self.fit_probe().probabilities

    def predictor(self) -> Any:
        """Return the target's input map, trunk and probe, with its encoder's settings."""
        from uml_core.encoders import store_precision  # they take seconds; only a finished run needs them
        from uml_core.serving.sequence_predictor import SequencePredictor

        probe, precision, classes = self.fit_probe(), store_precision(self._experiment), self._data.classes
        return SequencePredictor.from_model(self._experiment, self.model, probe, classes, precision=precision)

    def target_path(self) -> list[nn.Module]:
        """Return the target's input and output maps and the trunk."""
        model, target = self.model, self._data.target
        return [model.inputs[target], model.outputs[target], model.trunk]
