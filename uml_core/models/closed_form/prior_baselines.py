"""What a head with a prior is to beat: heads that need no auxiliary corpus, or no training, each tuned as hard.

Ridge is `fit_prior_head` without priors. The other two are here: logistic regression, whose penalty is chosen by rows
left out as ridge's is, and the zero-shot head, which has nothing to tune but the bias it keeps.

Shape legend: N rows, D embedding width, C classes.
"""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from uml_core.models.closed_form.prior_model import ClassPrior, Codes
from uml_core.models.closed_form.row_space import Array

STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0)  # C, the inverse of the penalty, on rows of mean squared length 1
FIRST_STRENGTH = 10.0  # where no class has two rows
MAX_FOLDS = 5


def zero_shot_head(prior: ClassPrior) -> tuple[Array, Array]:
    """Weight (D, C) and bias (C,) of the prototypes themselves: nothing is trained."""
    return prior.prototypes.T.copy(), np.where(prior.covered, 0.0, -np.inf)


def logistic_head(rows: Array, labels: Codes, num_classes: int) -> tuple[Array, Array]:
    """Weight (D, C) and bias (C,) of softmax regression by L-BFGS, its penalty chosen by folds with all classes."""
    mean_D = rows.mean(axis=0)
    length = float(np.sqrt(((rows - mean_D) ** 2).sum(axis=1).mean())) or 1.0
    scaled_ND = (rows - mean_D) / length
    strength = FIRST_STRENGTH
    folds = min(MAX_FOLDS, int(np.bincount(labels)[np.unique(labels)].min()))
    if folds >= 2:
        splits = list(StratifiedKFold(folds, shuffle=True, random_state=0).split(scaled_ND, labels))
        scores = {each: _log_likelihood(scaled_ND, labels, splits, each) for each in STRENGTHS}
        strength = max(scores, key=lambda each: scores[each])
    fitted = _fit(scaled_ND, labels, strength)
    weight_DC, bias_C = np.zeros((rows.shape[1], num_classes)), np.full(num_classes, -np.inf)
    if len(fitted.classes_) == 2:  # of two classes scikit-learn keeps the second one's logit alone
        weight_DC[:, fitted.classes_[1]], bias_C[fitted.classes_] = fitted.coef_[0], (0.0, fitted.intercept_[0])
    else:
        weight_DC[:, fitted.classes_], bias_C[fitted.classes_] = fitted.coef_.T, fitted.intercept_
    weight_DC /= length
    return weight_DC, bias_C - mean_D @ weight_DC


def _fit(rows: Array, labels: Codes, strength: float) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # separable classes need not converge
        warnings.filterwarnings("ignore", "The number of unique classes")  # one row a class
        return LogisticRegression(C=strength, max_iter=200).fit(rows, labels)


def _log_likelihood(rows: Array, labels: Codes, splits: list[tuple[Codes, Codes]], strength: float) -> float:
    """Of the labels of every fold, by the others."""
    total = 0.0
    for train, held_out in splits:
        fitted = _fit(rows[train], labels[train], strength)
        columns = np.searchsorted(fitted.classes_, labels[held_out])
        total += float(fitted.predict_log_proba(rows[held_out])[np.arange(len(held_out)), columns].sum())
    return total
