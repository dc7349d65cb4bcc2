"""The trained self-supervised target model as it is used: raw inputs or token sequences in, class and probability out.

In: the target's input map, trunk and probe. Auxiliary corpora and all output maps are gone by now. Its weights are
target_path.safetensors.

Shape legend: T tokens of a row, D token width, N rows, H shared width, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from uml_core.config import Experiment, SequenceModelConfig
from uml_core.models.linear_probe import LinearProbe
from uml_core.models.sequence.sequence_model import SequenceModel, TokenSpace
from uml_core.serving.predictor import Predictions, Predictor, read_settings

WEIGHTS_FILE = "target_path.safetensors"
TARGET = "target"  # what the one corpus that is left is called inside


@dataclass(frozen=True)
class SequencePredictor(Predictor):
    """The target path of a self-supervised model: encoder settings, input map and trunk, probe, class names."""

    ready_column = ready_format = "tokens"

    config: SequenceModelConfig
    space: TokenSpace
    weights: Mapping[str, Tensor]
    probe: LinearProbe

    @classmethod
    def from_model(
        cls,
        experiment: Experiment,
        model: SequenceModel,
        probe: LinearProbe,
        classes: tuple[str, ...],
        *,
        precision: str,
    ) -> SequencePredictor:
        """Keep what the target needs of a trained model."""
        target = experiment.target
        renamed = {
            f"inputs.{target}.": f"inputs.{TARGET}.",
            f"mean_{target}": f"mean_{TARGET}",
            f"deviation_{target}": f"deviation_{TARGET}",
            "trunk.": "trunk.",
        }
        weights = {
            new + name.removeprefix(old): value.detach().cpu().contiguous()
            for name, value in model.state_dict().items()
            for old, new in renamed.items()
            if (name.startswith(old) if old.endswith(".") else name == old)
        }
        encoder = experiment.encoder_of(target)
        modality = "sequence" if encoder is None else experiment.corpora[target].modality
        space = model.spaces[target]
        return cls(classes, modality, encoder, precision, model.config, space, weights, probe)

    def _ready_example(self) -> Any:
        return [[0.0] * self.space.dim] * 2  # two tokens

    def classify_ready(self, values: Sequence[Any]) -> Predictions:
        """Classify token sequences as they come in a column: lists of vectors, or of whole numbers."""
        sequences = [np.asarray([np.atleast_1d(token) for token in value], dtype=np.float32) for value in values]
        return self.classify([np.asarray(tokens).reshape(-1, self.space.dim) for tokens in sequences])

    def classify(self, values: Sequence[npt.NDArray[np.float32]]) -> Predictions:
        """Class and probability for sequences (T, D), each cut to `max_tokens`; an embedding (D,) is one token."""
        if not len(values):
            nothing = np.empty((0, len(self.classes)))
            return Predictions([], nothing[:, 0], nothing.astype(np.float32))
        model = self._model()
        cut = [np.atleast_2d(tokens_TD)[: self.config.max_tokens] for tokens_TD in values]
        lengths = np.array([len(tokens_TD) for tokens_TD in cut], dtype=np.int64)
        with torch.inference_mode():
            features_NH = model.features(TARGET, torch.from_numpy(np.concatenate(cut)), lengths).numpy()
        probabilities_NC = self.probe.probabilities(features_NH)
        codes = probabilities_NC.argmax(axis=1)
        logits_NC = np.log(probabilities_NC.clip(min=1e-300)).astype(np.float32)
        return Predictions([self.classes[code] for code in codes], probabilities_NC.max(axis=1), logits_NC)

    def _model(self) -> SequenceModel:
        model = SequenceModel({TARGET: self.space}, self.config).eval()
        missing = model.load_state_dict(dict(self.weights), strict=False).missing_keys
        assert all(name.startswith(("outputs.", "hidden_token")) for name in missing), missing
        return model

    def save(self, directory: Path) -> None:
        self._save_settings(
            directory,
            objective="self_supervised",
            sequence_model=self.config.model_dump(mode="json"),
            space={"dim": self.space.dim, "vocabulary": self.space.vocabulary},
        )
        probe = {"probe.weight": torch.from_numpy(self.probe.weight), "probe.bias": torch.from_numpy(self.probe.bias)}
        save_file({**self.weights, **probe}, directory / WEIGHTS_FILE)

    @classmethod
    def load(cls, directory: Path) -> SequencePredictor:
        settings, shared = read_settings(directory)
        tensors = load_file(directory / WEIGHTS_FILE)
        probe = LinearProbe(tensors.pop("probe.weight").numpy(), tensors.pop("probe.bias").numpy())
        return cls(
            **shared,
            config=SequenceModelConfig.model_validate(settings["sequence_model"]),
            space=TokenSpace(**settings["space"]),
            weights=tensors,
            probe=probe,
        )
