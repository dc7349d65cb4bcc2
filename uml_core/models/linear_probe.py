"""Logistic regression on a representation: what self-supervised training is selected by, and every run is probed with.

In: features and labels of a corpus's labelled train rows. Out: class probabilities of any rows.

Shape legend: N rows, H width of the representation, C classes.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from uml_core.models.shared_head import Features

Codes = npt.NDArray[np.int64]
STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)  # C, the inverse of the penalty on standardised features
TOLERANCE = 1e-4  # scikit-learn's
RANK_TOLERANCE = 1e-10  # of the largest squared length
NEVER = -1e4  # a logit no other is as low as, finite in float32 and in float16


@dataclass(frozen=True)
class LinearProbe:
    """Standardisation and logistic regression in one map: logits (N, C) = features (N, H) weightᵀ + bias."""

    weight: npt.NDArray[np.float64]  # (C, H)
    bias: npt.NDArray[np.float64]  # (C,)

    @classmethod
    def fit(
        cls, features_NH: Features, labels_N: Codes, num_classes: int, *, strength: float = 1.0, one_scale: bool = False
    ) -> LinearProbe:
        """Fit to labelled features, C = `strength` after standardisation; classes without rows are never predicted.

        With `one_scale` all features are divided by one deviation, that of them all together.
        """
        with _one_blas_thread():
            return StandardisedRows.from_features(features_NH, one_scale).fit(labels_N, num_classes, strength)

    @classmethod
    def fit_validated(
        cls, train: tuple[Features, Codes], val: tuple[Features, Codes], num_classes: int
    ) -> tuple[LinearProbe, float]:
        """Fit with every strength, of features scaled each alone or all alike; return the best on validation.

        By accuracy, then by NLL; its strength comes with it. Scaled alone, features of a pretrained encoder gain 1 to 3
        points, and raw pixels, some of which hardly vary, lose 6 (docs/measured.md).
        """
        with _one_blas_thread():
            scaled = [StandardisedRows.from_features(train[0], one_scale) for one_scale in (False, True)]
            settings = [(strength, rows) for strength in STRENGTHS for rows in scaled]
            probes = [rows.fit(train[1], num_classes, strength) for strength, rows in settings]
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


def _one_blas_thread() -> threadpool_limits:
    """Threads of BLAS and the solver's own (OpenMP) wait for each other in busy loops: 1.2 s of CPU a fit, not 0.14."""
    return threadpool_limits(1, user_api="blas")


@dataclass(frozen=True)
class StandardisedRows:
    """Features less their mean, over their deviation, in as few coordinates as span them.

    Penalised weights lie in the span of the rows: of fewer rows than features, the fit in coordinates (N, N) is that in
    all H, and takes a sixth of the time (152 rows, 1280 features).
    """

    mean: npt.NDArray[np.float64]  # (H,)
    deviation: npt.NDArray[np.float64]  # (H,)
    rows: npt.NDArray[np.float64]  # (N, H), or (N, N) in the coordinates of `axes`
    axes: npt.NDArray[np.float64] | None  # (N, H): scaled features are rows axes; None: they are rows
    tolerance: float

    @classmethod
    def from_features(cls, features_NH: Features, one_scale: bool) -> StandardisedRows:
        values = features_NH.astype(np.float64)
        mean_H, deviation_H = values.mean(axis=0), values.std(axis=0)
        if one_scale:
            deviation_H = np.full_like(deviation_H, np.sqrt(np.square(deviation_H).mean()))
        deviation_H = np.where(deviation_H > 1e-8, deviation_H, 1.0)
        scaled_NH = (values - mean_H) / deviation_H
        if len(values) >= values.shape[1]:
            return cls(mean_H, deviation_H, scaled_NH, None, TOLERANCE)
        squares_N, basis_NN = np.linalg.eigh(scaled_NH @ scaled_NH.T)
        kept = squares_N > RANK_TOLERANCE * max(float(squares_N[-1]), 1e-300)
        lengths_R, basis_NR = np.sqrt(squares_N[kept]), basis_NN[:, kept]
        # The symmetric root: coordinates of like size. The solver stops by the largest of a gradient's coordinates,
        # which are larger the fewer they are: this is where it stops in all H.
        tolerance = TOLERANCE * math.sqrt(values.shape[1] / max(1, len(lengths_R)))
        axes_NH = (basis_NR / lengths_R) @ (basis_NR.T @ scaled_NH)
        return cls(mean_H, deviation_H, (basis_NR * lengths_R) @ basis_NR.T, axes_NH, tolerance)

    def fit(self, labels_N: Codes, num_classes: int, strength: float) -> LinearProbe:
        """Logistic regression with C = `strength`, as a map of features as they come."""
        weight_CH, bias_C = np.zeros((num_classes, len(self.mean))), np.full(num_classes, NEVER)
        present = np.unique(labels_N)
        bias_C[present] = 0.0
        if len(present) > 1:
            regression = LogisticRegression(C=strength, max_iter=1000, tol=self.tolerance)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # separable classes need not converge
                # With one shot there are as many rows as classes.
                warnings.filterwarnings("ignore", "The number of unique classes")
                regression.fit(self.rows, labels_N)
            # Of two classes scikit-learn keeps the second one's logit alone; the first one's is 0.
            codes = regression.classes_ if len(regression.classes_) > 2 else regression.classes_[1:]
            fitted = regression.coef_ if self.axes is None else regression.coef_ @ self.axes
            weight_CH[codes] = fitted / self.deviation
            bias_C[codes] = regression.intercept_ - weight_CH[codes] @ self.mean
        return LinearProbe(weight_CH, bias_C)
