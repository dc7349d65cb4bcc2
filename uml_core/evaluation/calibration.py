"""How far probabilities can be taken at their word: expected calibration error, and a temperature that mends it.

Shape legend: N rows, C classes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

Probabilities = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]

BINS = 15  # of equal width over [0, 1], as in Guo et al. 2017
LOG_TEMPERATURES = (-4.0, 4.0)  # searched; e⁴ is 55
SMALLEST = 1e-300  # a probability that is 0 in float64


def expected_calibration_error(probabilities_NC: Probabilities, labels_N: Codes, *, bins: int = BINS) -> float:
    """Return Σ_b n_b / N · |accuracy_b − confidence_b| over bins of the largest probability, in [0, 1].

    Bins have equal width and are open to the left: (0, 1/15], (1/15, 2/15], ... The value depends on the binning and
    grows when there are few rows: compare it only between runs on the same test rows, with the same bins.
    """
    confidence_N = probabilities_NC.max(axis=1)
    correct_N = probabilities_NC.argmax(axis=1) == labels_N
    bin_N = np.clip(np.ceil(confidence_N * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps_B = np.bincount(bin_N, weights=correct_N - confidence_N, minlength=bins)
    return float(np.abs(gaps_B).sum() / len(labels_N))


def negative_log_likelihood(probabilities_NC: Probabilities, labels_N: Codes) -> float:
    """Return the mean −log p of the true classes, in nats."""
    return float(-np.log(probabilities_NC[np.arange(len(labels_N)), labels_N].clip(min=SMALLEST)).mean())


def fitted_temperature(probabilities_NC: Probabilities, labels_N: Codes) -> float:
    """Return the temperature T at which softmax(log p / T) has the lowest NLL on these (validation) rows."""
    log_NC = np.log(probabilities_NC.clip(min=SMALLEST))
    places = np.arange(len(labels_N))

    def loss(log_temperature: float) -> float:
        scaled_NC = log_softmax(log_NC / np.exp(log_temperature), axis=1)
        return float(-scaled_NC[places, labels_N].mean())

    return float(np.exp(minimize_scalar(loss, bounds=LOG_TEMPERATURES, method="bounded").x))


def at_temperature(probabilities_NC: Probabilities, temperature: float) -> Probabilities:
    """Return softmax(log p / T): the same order of classes, other confidence."""
    scaled_NC: Probabilities = np.exp(log_softmax(np.log(probabilities_NC.clip(min=SMALLEST)) / temperature, axis=1))
    return scaled_NC
