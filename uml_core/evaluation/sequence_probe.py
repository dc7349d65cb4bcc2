"""The probe of self-supervised training: logistic regression on the mean of the trunk's output over a sequence.

In: a model and labelled sequences of the target. Out: accuracy and class probabilities. The trunk is never fitted to a
label; the probe is, on the target's labelled train rows alone.

Shape legend: N sequences, H shared width, C classes.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from uml_core.corpora.sequence_data import SequenceRows, token_places
from uml_core.feed import as_tensor
from uml_core.models.sequence_model import SequenceModel

Features = npt.NDArray[np.float32]
ROWS_AT_ONCE = 16_384  # tokens in one pass of the trunk


@dataclass(frozen=True)
class LinearProbe:
    """Standardisation and logistic regression in one map: logits (N, C) = features (N, H) weightᵀ + bias."""

    weight: npt.NDArray[np.float64]  # (C, H)
    bias: npt.NDArray[np.float64]  # (C,)

    @classmethod
    def fit(cls, features_NH: Features, labels_N: npt.NDArray[np.int64], num_classes: int) -> LinearProbe:
        """Fit to labelled features, C = 1 after standardisation; a single class is always predicted."""
        values = features_NH.astype(np.float64)
        mean_H, deviation_H = values.mean(axis=0), values.std(axis=0)
        deviation_H = np.where(deviation_H > 1e-8, deviation_H, 1.0)
        weight_CH, bias_C = np.zeros((num_classes, values.shape[1])), np.zeros(num_classes)
        if len(np.unique(labels_N)) > 1:
            regression = LogisticRegression(max_iter=1000)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # separable classes need not converge
                regression.fit((values - mean_H) / deviation_H, labels_N)
            # Of two classes scikit-learn keeps the second one's logit alone.
            codes = regression.classes_ if len(regression.classes_) > 2 else regression.classes_[1:]
            weight_CH[codes], bias_C[codes] = regression.coef_ / deviation_H, regression.intercept_
            bias_C[codes] -= (regression.coef_ / deviation_H) @ mean_H
        return cls(weight_CH, bias_C)

    def probabilities(self, features_NH: Features) -> npt.NDArray[np.float64]:
        """Return class probabilities (N, C)."""
        logits_NC = features_NH.astype(np.float64) @ self.weight.T + self.bias
        shifted = np.exp(logits_NC - logits_NC.max(axis=1, keepdims=True))
        probabilities: npt.NDArray[np.float64] = shifted / shifted.sum(axis=1, keepdims=True)
        return probabilities

    def score(self, features_NH: Features, labels_N: npt.NDArray[np.int64]) -> tuple[float, float]:
        """Return accuracy in [0, 1] and mean negative log-likelihood in nats."""
        probabilities_NC = self.probabilities(features_NH)
        likelihood = probabilities_NC[np.arange(len(labels_N)), labels_N].clip(min=1e-300)
        return float((probabilities_NC.argmax(axis=1) == labels_N).mean()), float(-np.log(likelihood).mean())


@torch.inference_mode()
def sequence_features(model: SequenceModel, corpus: str, rows: SequenceRows) -> Features:
    """Return the trunk's mean output over each sequence (N, H); leaves the model's mode as it was."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    tokens, starts, lengths = as_tensor(rows.table.tokens), rows.starts, rows.lengths
    features, first = [np.empty((0, model.config.width), dtype=np.float32)], 0
    for last in _cuts(lengths):
        places = token_places(starts[first:last], lengths[first:last])
        taken = tokens.index_select(0, torch.from_numpy(places)).to(device)
        features.append(model.features(corpus, taken, lengths[first:last]).float().cpu().numpy())
        first = last
    model.train(was_training)
    return np.concatenate(features)


def raw_features(rows: SequenceRows) -> Features:
    """Return what needs no trunk: the mean token of each sequence (N, D); of discrete tokens their shares (N, V)."""
    tokens = rows.table.tokens
    width = rows.table.vocabulary or rows.dim
    means = np.empty((len(rows), width), dtype=np.float32)
    for index, (start, length) in enumerate(zip(rows.starts, rows.lengths, strict=True)):
        own = tokens[start : start + length]
        if rows.table.vocabulary is None:
            means[index] = own.mean(axis=0)
        else:
            means[index] = np.bincount(own[:, 0].astype(np.int64), minlength=width) / length
    return means


def _cuts(lengths: npt.NDArray[np.int64]) -> list[int]:
    """Return where to cut N sequences so that a piece has about ROWS_AT_ONCE tokens."""
    pieces = np.cumsum(lengths) // ROWS_AT_ONCE
    return [*np.flatnonzero(np.diff(pieces)) + 1, len(lengths)] if len(lengths) else []
