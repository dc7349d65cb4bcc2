"""Logistic regression on a representation: what self-supervised training is selected by, and every run is probed with.

In: features and labels of a corpus's labelled train rows. Out: class probabilities of any rows.

Shape legend: N rows, H width of the representation, C classes.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from uml_core.models.shared_head import Features

Codes = npt.NDArray[np.int64]
STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)  # C, the inverse of the penalty on standardised features


@dataclass(frozen=True)
class LinearProbe:
    """Standardisation and logistic regression in one map: logits (N, C) = features (N, H) weightᵀ + bias."""

    weight: npt.NDArray[np.float64]  # (C, H)
    bias: npt.NDArray[np.float64]  # (C,)

    @classmethod
    def fit(
        cls, features_NH: Features, labels_N: Codes, num_classes: int, *, strength: float = 1.0, one_scale: bool = False
    ) -> LinearProbe:
        """Fit to labelled features, C = `strength` after standardisation; a single class is always predicted.

        With `one_scale` all features are divided by one deviation, that of them all together.
        """
        values = features_NH.astype(np.float64)
        mean_H, deviation_H = values.mean(axis=0), values.std(axis=0)
        if one_scale:
            deviation_H = np.full_like(deviation_H, np.sqrt(np.square(deviation_H).mean()))
        deviation_H = np.where(deviation_H > 1e-8, deviation_H, 1.0)
        weight_CH, bias_C = np.zeros((num_classes, values.shape[1])), np.zeros(num_classes)
        if len(np.unique(labels_N)) > 1:
            regression = LogisticRegression(C=strength, max_iter=1000)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # separable classes need not converge
                # With one shot there are as many rows as classes.
                warnings.filterwarnings("ignore", "The number of unique classes")
                regression.fit((values - mean_H) / deviation_H, labels_N)
            # Of two classes scikit-learn keeps the second one's logit alone.
            codes = regression.classes_ if len(regression.classes_) > 2 else regression.classes_[1:]
            weight_CH[codes] = regression.coef_ / deviation_H
            bias_C[codes] = regression.intercept_ - weight_CH[codes] @ mean_H
        return cls(weight_CH, bias_C)

    @classmethod
    def fit_validated(
        cls, train: tuple[Features, Codes], val: tuple[Features, Codes], num_classes: int
    ) -> tuple[LinearProbe, float]:
        """Fit with every strength, of features scaled each alone or all alike; return the best on validation.

        By accuracy, then by NLL; its strength comes with it. Scaled alone, features of a pretrained encoder gain 1 to 3
        points, and raw pixels, some of which hardly vary, lose 6 (docs/measured.md).
        """
        settings = [(strength, one_scale) for strength in STRENGTHS for one_scale in (False, True)]
        probes = [cls.fit(*train, num_classes, strength=strength, one_scale=alike) for strength, alike in settings]
        scores = [probe.score(*val) for probe in probes]
        best = max(range(len(probes)), key=lambda each: (scores[each][0], -scores[each][1]))
        return probes[best], settings[best][0]

    def probabilities(self, features_NH: Features) -> npt.NDArray[np.float64]:
        logits_NC = features_NH.astype(np.float64) @ self.weight.T + self.bias
        probabilities_NC: npt.NDArray[np.float64] = softmax(logits_NC, axis=1)
        return probabilities_NC

    def score(self, features_NH: Features, labels_N: Codes) -> tuple[float, float]:
        """Accuracy in [0, 1] and mean negative log-likelihood in nats."""
        probabilities_NC = self.probabilities(features_NH)
        likelihood = probabilities_NC[np.arange(len(labels_N)), labels_N].clip(min=1e-300)
        return float((probabilities_NC.argmax(axis=1) == labels_N).mean()), float(-np.log(likelihood).mean())
