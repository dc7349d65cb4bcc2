"""The temperature that makes probabilities of logits, and the cross-entropy they then have.

Shape legend: N rows, C classes.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]
NEWTON_STEPS = 30


def losses(logits_NC: Array, labels_N: Codes, temperature: float = 1.0) -> Array:
    """The cross-entropy of each row (N,), in nats, of logits divided by the temperature."""
    scaled_NC = logits_NC / temperature
    scaled_NC -= scaled_NC.max(axis=1, keepdims=True)
    own_N: Array = np.log(np.exp(scaled_NC).sum(axis=1)) - scaled_NC[np.arange(len(labels_N)), labels_N]
    return own_N


def fit_temperature(
    logits_NC: Array, labels_N: Codes, weights_N: Array, tolerance: float = 1e-9
) -> tuple[float, float]:
    """The temperature with the least cross-entropy, and that loss per row: Newton's method on its logarithm.

    A tenth of a row more, of no class, keeps rows that are all right from asking for certainty.
    """
    share_N = (weights_N / weights_N.sum()).astype(logits_NC.dtype)
    num_classes = logits_NC.shape[1]
    ones_C = np.ones(num_classes, dtype=logits_NC.dtype)  # BLAS adds up rows several times as fast as numpy
    below_NC = logits_NC - logits_NC.max(axis=1, keepdims=True)
    mean_N = below_NC @ ones_C / num_classes
    squares_N = np.einsum("nc,nc->n", below_NC, below_NC) / num_classes
    spread = math.sqrt(max(float(share_N @ (squares_N - mean_N**2)), 0.0))
    if spread < 1e-12:
        return 1.0, math.log(num_classes)
    own, mean = float(share_N @ below_NC[np.arange(len(labels_N)), labels_N]), float(share_N @ mean_N)
    target = own - (own - mean) * 0.1 / (weights_N.sum() + 0.1)
    tolerance = max(tolerance, 100 * float(np.finfo(logits_NC.dtype).eps))
    limits = (1e-3 / spread, 1e3 / spread)
    sharpness = max((own - mean) / spread, 1.0) / spread  # that of normal logits with as large a gap
    odds_NC = np.empty_like(below_NC)
    for _ in range(NEWTON_STEPS):
        np.exp(np.multiply(below_NC, sharpness, out=odds_NC), out=odds_NC)
        total_N = odds_NC @ ones_C
        odds_NC *= below_NC
        mean_N = odds_NC @ ones_C / total_N
        variance_N = np.einsum("nc,nc->n", odds_NC, below_NC) / total_N - mean_N**2
        slope = (float(share_N @ mean_N) - target) * sharpness
        curvature = float(share_N @ variance_N) * sharpness**2
        curvature += slope if curvature + slope > 0.1 * curvature else abs(slope)
        step = min(max(-slope / (curvature + 1e-12), -1.5), 1.5)
        # After the step, to second order.
        loss = float(share_N @ np.log(total_N)) - sharpness * own - 0.5 * abs(slope * step)
        sharpness = min(max(sharpness * math.exp(step), limits[0]), limits[1])
        if abs(step) < tolerance:
            break
    return 1.0 / sharpness, loss
