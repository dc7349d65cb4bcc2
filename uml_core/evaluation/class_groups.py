"""Test accuracy by how many train rows a class has: none (unseen), or few, some and many (long tails).

Accuracies here are means over classes, each class of one weight, and every row is classified among all classes, as in
generalised zero-shot learning (Xian et al. 2017); the area under the seen-unseen curve is that of Chao et al. 2016.

Shape legend: N rows, C classes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from uml_core.evaluation.run import Codes, Probabilities

MANY, FEW = 20, 5  # train rows: head is above MANY, tail below FEW
SMALLEST = 1e-300  # a probability that is 0 in float64


def group_accuracies(probabilities_NC: Probabilities, labels_N: Codes, train_rows_C: Codes) -> dict[str, float]:
    """Accuracy on seen and on unseen classes, and on head, medium and tail classes, where test has more than one kind.

    Args:
        probabilities_NC: of every test row, over all classes.
        labels_N: its class.
        train_rows_C: how many train rows of the target each class has.
    """
    rows_N, found = train_rows_C[labels_N], {}
    weights_N = _class_weights(labels_N)
    correct_N = probabilities_NC.argmax(axis=1) == labels_N

    def accuracy(of_group_N: npt.NDArray[np.bool_]) -> float:
        return float(np.average(correct_N[of_group_N], weights=weights_N[of_group_N]))

    is_seen_N = rows_N > 0
    if is_seen_N.any() and not is_seen_N.all():
        seen, unseen = accuracy(is_seen_N), accuracy(~is_seen_N)
        found = {
            "seen_accuracy": seen,
            "unseen_accuracy": unseen,
            "harmonic_mean": 2 * seen * unseen / (seen + unseen) if seen + unseen else 0.0,
            "ausuc": area_under_seen_unseen_curve(probabilities_NC, labels_N, train_rows_C > 0),
        }
    bands = {
        "head_accuracy": rows_N > MANY,
        "medium_accuracy": (rows_N >= FEW) & (rows_N <= MANY),
        "tail_accuracy": is_seen_N & (rows_N < FEW),
    }
    present = {name: of_band_N for name, of_band_N in bands.items() if of_band_N.any()}
    if len(present) > 1:
        found |= {name: accuracy(of_band_N) for name, of_band_N in present.items()}
    return found


def area_under_seen_unseen_curve(
    probabilities_NC: Probabilities, labels_N: Codes, is_seen_C: npt.NDArray[np.bool_]
) -> float:
    """The area in [0, 1] under seen accuracy over unseen accuracy, as a bias on unseen classes' logits grows.

    It does not depend on the bias that the model has: compare it where only the balance between the two kinds differs.
    """
    log_NC = np.log(probabilities_NC.clip(min=SMALLEST))
    seen_C, unseen_C = np.flatnonzero(is_seen_C), np.flatnonzero(~is_seen_C)
    best_N2 = np.stack([kind[log_NC[:, kind].argmax(axis=1)] for kind in (seen_C, unseen_C)], axis=1)
    each_N = np.arange(len(labels_N))
    # A row goes over to unseen once the bias is above its margin: one of a seen class is lost then, an unseen one won.
    margin_N = log_NC[each_N, best_N2[:, 0]] - log_NC[each_N, best_N2[:, 1]]
    of_seen_N, weights_N = is_seen_C[labels_N], _class_weights(labels_N)
    could_N = np.where(of_seen_N, best_N2[:, 0], best_N2[:, 1]) == labels_N
    ends_N, position_N = np.unique(margin_N, return_inverse=True)
    lost_B, won_B = (
        np.bincount(position_N, weights=(could_N & kind_N) * weights_N, minlength=len(ends_N)) / weights_N[kind_N].sum()
        for kind_N in (of_seen_N, ~of_seen_N)
    )
    unseen_B, lost_so_far_B = (np.concatenate([[0.0], np.cumsum(each_B)]) for each_B in (won_B, lost_B))
    return float(np.trapezoid(lost_so_far_B[-1] - lost_so_far_B, unseen_B))


def _class_weights(labels_N: Codes) -> npt.NDArray[np.float64]:
    """Weights (N,) under which every class that has rows counts the same."""
    return 1.0 / np.bincount(labels_N)[labels_N]
