"""Which train labels look wrong: confident learning (Northcutt, Jiang and Chuang, JAIR 2021).

In: the target's train embeddings and labels. Out: rows whose label a classifier that did not see them doubts. A row is
suspicious where the probability of another class is above that class's threshold (its mean over the rows that carry its
label) and above that of the row's own label. It needs no head, so every run has it.

Shape legend: N rows, C classes, D embedding width.
"""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from uml_core.analysis.shared_space import AnalysisResult, Codes, Floats, TrainedRun

FOLDS = 5
MAX_SCORES = 5_000_000  # rows × classes: with embeddings 1,000 wide more takes many minutes
TRUSTED = 0.6  # out-of-fold accuracy: at 0.45, 17 % of the suspicious rows had wrong labels; at 0.74, 92 %
CSV = "suspicious_labels.csv"


def explain_labels(run: TrainedRun) -> AnalysisResult:
    """Doubt train labels of the target by out-of-fold probabilities of logistic regression on the embeddings."""
    rows = run.data.labelled
    counts_C = np.bincount(rows.labels)
    judged = np.flatnonzero(counts_C[rows.labels] > 1)  # a class's only row is in no fold that was fitted with it
    codes, labels_N = np.unique(rows.labels[judged], return_inverse=True)
    if len(codes) < 2 or len(judged) * len(codes) > MAX_SCORES:
        why = "fewer than two classes have two rows" if len(codes) < 2 else "too many; limit them by data.shots"
        return AnalysisResult(summary=(f"labels: {len(judged)} train rows of {len(codes)} classes: {why}",))
    probabilities_NC = out_of_fold(rows.gathered()[judged].astype(np.float64), labels_N, seed=run.experiment.seed)
    found = suspicious(probabilities_NC, labels_N)
    right = float((probabilities_NC.argmax(axis=1) == labels_N).mean())
    names = np.array(run.data.classes, dtype=object)[codes]
    raw, table_rows = run.raw.get(run.data.target), rows.rows[judged[found["row"]]]
    ids = [str(row) if raw is None else raw.ids[row] for row in table_rows]
    table = found.drop(columns="row").assign(label=names[found["label"]], suggested=names[found["suggested"]])
    table.insert(0, "id", ids)
    doubt = "" if right >= TRUSTED else "; a head that knows its classes so poorly is mostly wrong about these, too"
    return AnalysisResult(
        {"analysis/labels/suspicious": len(found), "analysis/labels/out_of_fold_accuracy": right},
        tables={CSV: table.to_csv(index=False, float_format="%.4f")},
        summary=(
            f"labels: {len(found)} of {len(judged)} train labels look wrong to logistic regression that did not see "
            f"them and agrees with {100 * right:.0f} % of all; {CSV} has them, the surest first{doubt}",
        ),
    )


def out_of_fold(embedding_ND: Floats, labels_N: Codes, *, seed: int) -> Floats:
    """Class probabilities (N, C) of rows by logistic regression that was fitted without them; codes are 0 to C - 1."""
    folds = StratifiedKFold(min(FOLDS, np.bincount(labels_N).max()), shuffle=True, random_state=seed)
    head = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=200))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class may have fewer rows than folds, and the last steps hardly matter
        found: Floats = cross_val_predict(head, embedding_ND, labels_N, cv=folds, method="predict_proba")
    return found


def suspicious(probabilities_NC: Floats, labels_N: Codes) -> pd.DataFrame:
    """Rows whose label is doubted, by the margin of the label's probability below the suggested one's.

    Args:
        probabilities_NC: out of fold; every class has a row.
        labels_N: codes, 0 to C - 1.

    Returns:
        Columns row (0 to N - 1), label, suggested (codes), label_probability, suggested_probability.
    """
    every = np.arange(len(labels_N))
    own_N = probabilities_NC[every, labels_N]
    threshold_C = pd.Series(own_N).groupby(labels_N).mean().to_numpy()
    above_NC = (probabilities_NC >= threshold_C) & (probabilities_NC > own_N[:, None])
    suggested_N = np.where(above_NC, probabilities_NC, -1.0).argmax(axis=1)
    best_N = probabilities_NC[every, suggested_N]
    row = np.flatnonzero(above_NC.any(axis=1))
    columns = {"row": every, "label": labels_N, "suggested": suggested_N}
    columns |= {"label_probability": own_N, "suggested_probability": best_N}
    ranked = row[np.argsort(own_N[row] - best_N[row], kind="stable")]
    return pd.DataFrame(columns).iloc[ranked]
