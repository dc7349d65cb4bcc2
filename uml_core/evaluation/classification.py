"""Evaluators of the classifier itself: test metrics, calibration, shifted test sets, and where it errs class by class.

Shape legend: N rows, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.transforms import Affine2D, Bbox
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from uml_core.evaluation.outcome import SMALLEST, group_accuracies
from uml_core.evaluation.run import Codes, EvaluatedRun, Probabilities, Results
from uml_core.figures.drawing import WIDTH_IN, drawn, house_style, printable
from uml_core.models.closed_form.temperature import losses
from uml_core.tracking.records import CLASS_METRIC

TOP = 5
BINS = 15  # of equal width over [0, 1], as in Guo et al. 2017
LOG_TEMPERATURES = (-4.0, 4.0)  # searched; e⁴ is 55
CLASS_IN = 0.15  # a row of one class: letters of 6.5 points fit into it
MARGIN_IN = 2.2  # names and colour bar
MAX_NAMED = 100  # more classes are numbered
LETTER = 0.68  # of its size is a letter wide: a capital on average
WITH_NUMBERS = 15  # so few classes have their counts written into the cells


def evaluate_test(run: EvaluatedRun) -> Results:
    """Measure the test split: accuracy, balanced accuracy, macro-F1, top-5, NLL, calibration, each class's recall.

    Beside them the accuracies of `group_accuracies`: seen and unseen classes, head and tail.
    Top-5 is left out of five classes or fewer, where it is always 1. Calibration error (15 bins of equal width) may be
    compared on the same test rows only; `_at_temperature` is after one temperature fitted on validation, and with few
    validation rows mostly shows their chance. Macro-F1 is not comparable between sets of classes.
    """
    if not run.has_test:
        return
    probabilities_NC, labels_N = run.probabilities("test"), run.labels("test")
    yield from ((f"test/{name}", value) for name, value in classification_metrics(probabilities_NC, labels_N).items())
    groups = group_accuracies(probabilities_NC, labels_N, run.train_rows)
    yield from ((f"test/{name}", value) for name, value in groups.items())
    yield "test/calibration_error", expected_calibration_error(probabilities_NC, labels_N)
    temperature = fitted_temperature(run.probabilities("val"), run.labels("val"))
    scaled_NC = at_temperature(probabilities_NC, temperature)
    yield "test/temperature", temperature
    yield "test/nll_at_temperature", negative_log_likelihood(scaled_NC, labels_N)
    yield "test/calibration_error_at_temperature", expected_calibration_error(scaled_NC, labels_N)
    codes = np.unique(labels_N)  # a class without a test row has no recall
    hits_C, rows_C, _ = _counts(run.predicted("test"), labels_N, len(run.classes))
    recalls = hits_C[codes] / rows_C[codes]
    yield from (
        (f"{CLASS_METRIC}{run.classes[code]}", float(recall)) for code, recall in zip(codes, recalls, strict=True)
    )


def evaluate_shift(run: EvaluatedRun) -> Results:
    """Measure every shifted test set: accuracy, and accuracy among its own classes where it has only some.

    `accuracy` is among all of the target's classes. `subset_accuracy` predicts among the classes the set has, as
    ImageNet-A and -R are scored: compare it with `test_subset_accuracy`, the same on the test rows of these classes,
    never with `test/accuracy`, which has more classes to confuse.
    """
    for split in run.shifted:
        yield f"shift/{split}/accuracy", run.accuracy(split)
        present = np.unique(run.labels(split))
        if len(present) == len(run.classes):
            continue
        yield f"shift/{split}/classes", float(len(present))
        yield f"shift/{split}/subset_accuracy", subset_accuracy(run.probabilities(split), run.labels(split), present)
        if run.has_test:
            of_these = np.isin(run.labels("test"), present)
            if of_these.any():
                test = run.probabilities("test")[of_these], run.labels("test")[of_these]
                yield f"shift/{split}/test_subset_accuracy", subset_accuracy(*test, present)


def evaluate_classes(run: EvaluatedRun) -> Results:
    """Write the table of single classes and the confusion matrix of the test split, as CSV and figure.

    Precision depends on how many rows each class has: compare it on the same test rows only.
    """
    if not run.has_test:
        return
    counts_CC = confusion_matrix(run.labels("test"), run.predicted("test"), labels=np.arange(len(run.classes)))
    errors_CC = counts_CC - np.diag(np.diag(counts_CC))
    yield "test/classes.csv", _class_table(run, errors_CC)
    frame = pd.DataFrame(counts_CC, index=pd.Index(run.classes, name="class \\ predicted"), columns=list(run.classes))
    yield "test/confusion.csv", frame.to_csv()
    worst = _most_confused(errors_CC, run.classes)
    caption = (
        f"Confusion matrix of {int(counts_CC.sum())} test rows of {run.target}: in a row, the shares that a class's "
        f"rows are predicted as. {worst}"
    )
    yield "test/confusion", drawn("confusion", confusion_figure(counts_CC, run.classes), caption, alternative=worst)


def classification_metrics(probabilities_NC: Probabilities, labels_N: Codes) -> dict[str, float]:
    """Accuracy, balanced accuracy, macro-F1 (over classes that have rows or are predicted), top-5 and NLL."""
    predicted_N = probabilities_NC.argmax(axis=1)
    hits_C, rows_C, taken_C = _counts(predicted_N, labels_N, probabilities_NC.shape[1])
    has_rows_C, is_seen_C = rows_C > 0, rows_C + taken_C > 0
    metrics = {
        "accuracy": float((predicted_N == labels_N).mean()),
        "balanced_accuracy": float((hits_C[has_rows_C] / rows_C[has_rows_C]).mean()),
        "macro_f1": float((2 * hits_C[is_seen_C] / (rows_C + taken_C)[is_seen_C]).mean()),
        "nll": negative_log_likelihood(probabilities_NC, labels_N),
    }
    if probabilities_NC.shape[1] > TOP:
        true_N1 = np.take_along_axis(probabilities_NC, labels_N[:, None], axis=1)
        metrics["top5_accuracy"] = float(((probabilities_NC > true_N1).sum(axis=1) < TOP).mean())
    return metrics


def _counts(predicted_N: Codes, labels_N: Codes, num_classes: int) -> tuple[Codes, Codes, Codes]:
    """Of each class (C,): rows that are recognised, rows, and rows taken for it.

    Of scikit-learn's functions three calls are 70 % of measuring a head: a sweep measures hundreds.
    """
    hits_N = labels_N[predicted_N == labels_N]
    hits_C, rows_C, taken_C = (np.bincount(codes, minlength=num_classes) for codes in (hits_N, labels_N, predicted_N))
    return hits_C, rows_C, taken_C


def subset_accuracy(probabilities_NC: Probabilities, labels_N: Codes, classes: Codes) -> float:
    """The accuracy when the prediction is made among some classes only."""
    return float((classes[probabilities_NC[:, classes].argmax(axis=1)] == labels_N).mean())


def _class_table(run: EvaluatedRun, errors_CC: npt.NDArray[np.int64]) -> str:
    precision_C, recall_C, f1_C, rows_C = precision_recall_fscore_support(
        run.labels("test"), run.predicted("test"), labels=np.arange(len(run.classes)), zero_division=0.0
    )
    worst_C, most_C = errors_CC.argmax(axis=1), errors_CC.max(axis=1)
    frame = pd.DataFrame(
        {
            "class": run.classes,
            "train_rows": run.train_rows,
            "test_rows": rows_C,
            "recall": recall_C,
            "precision": precision_C,
            "f1": f1_C,
            "most_confused_with": [
                run.classes[code] if most else "" for code, most in zip(worst_C, most_C, strict=True)
            ],
            "rows_confused_with_it": most_C,
        }
    )
    return str(frame.to_csv(index=False, float_format="%.4f"))


def _most_confused(errors_CC: npt.NDArray[np.int64], classes: tuple[str, ...]) -> str:
    """The three most frequent confusions in words."""
    pairs = [divmod(int(position), len(classes)) for position in np.argsort(errors_CC, axis=None)[::-1][:3]]
    found = [f"{classes[a]} as {classes[b]} ({errors_CC[a, b]})" for a, b in pairs if errors_CC[a, b]]
    return f"Most often taken for another: {', '.join(found)}." if found else "No test row is taken for another class."


def confusion_figure(counts_CC: npt.NDArray[np.int64], classes: Sequence[str]) -> Figure:
    """Draw the share of each class's rows (down) by prediction (across); small shares are kept visible.

    The figure grows with the number of classes instead of shrinking its letters. Its parts are placed here: finding
    a layout, and ticks, of 100 classes takes matplotlib seconds.
    """
    count = len(classes)
    shares_CC = counts_CC / np.maximum(counts_CC.sum(axis=1, keepdims=True), 1)
    side = max(WIDTH_IN - MARGIN_IN, CLASS_IN * min(count, MAX_NAMED))
    names = [printable(name, limit=22) for name in classes] if count <= MAX_NAMED else []
    size = 9 if count <= 12 else 6.5
    longest = max(map(len, names), default=4)
    margin = 0.4 + longest * LETTER * size / 72
    with house_style(**{"axes.grid": False}):
        figure = Figure(figsize=(margin + side + 0.9, margin + side + 0.1))
        place = Affine2D().scale(*(1 / figure.get_size_inches()))  # inches to shares of the figure
        axis = figure.add_axes(Bbox.from_bounds(margin, margin, side, side).transformed(place).bounds)
        shown = np.ma.masked_equal(shares_CC, 0.0)
        image = axis.imshow(shown, cmap="cividis", norm=PowerNorm(0.5, vmin=0, vmax=1), interpolation="nearest")
        axis.tick_params(length=0)
        if names:
            axis.set_xticks([])
            axis.set_yticks([])
            beyond = 0.5 + 0.05 * count / side  # half a class, and a little more
            for index, name in enumerate(names):
                axis.text(-beyond, index, name, fontsize=size, ha="right", va="center_baseline")
                axis.text(index, count - 1 + beyond, name, fontsize=size, ha="center", va="top", rotation=90)
            edges, ends = np.arange(count + 1) - 0.5, (-0.5, count - 0.5)
            axis.hlines(edges, *ends, colors="#e4e4e4", linewidths=0.4, zorder=0.5)
            axis.vlines(edges, *ends, colors="#e4e4e4", linewidths=0.4, zorder=0.5)
        if count <= WITH_NUMBERS:
            for row, column in np.argwhere(counts_CC > 0):
                colour = "black" if shares_CC[row, column] > 0.35 else "white"
                axis.text(column, row, str(counts_CC[row, column]), ha="center", va="center", fontsize=8, color=colour)
        numbered = "" if names else " (class number)"
        (left, bottom), (across, up) = place.transform([(0.08, 0.08), (margin + side / 2, margin + side / 2)])
        figure.text(across, bottom, f"predicted class{numbered}", ha="center", va="bottom")
        figure.text(left, up, f"true class{numbered}", rotation=90, ha="left", va="center")
        beside = Bbox.from_bounds(margin + side + 0.1, margin + side * 0.2, 0.12, side * 0.6).transformed(place)
        bar = figure.colorbar(image, cax=figure.add_axes(beside.bounds), ticks=[0, 0.05, 0.25, 0.5, 1])
        bar.ax.set_yticklabels(["0", "5", "25", "50", "100"])
        bar.set_label("% of the class's rows (white: none)")
    return figure


def expected_calibration_error(probabilities_NC: Probabilities, labels_N: Codes) -> float:
    """Σ_b n_b / N · |accuracy_b − confidence_b| over bins of the largest probability, in [0, 1].

    Bins have equal width and are open to the left: (0, 1/15], (1/15, 2/15], ... The value depends on the binning and
    grows when there are few rows: compare it only between runs on the same test rows.
    """
    confidence_N = probabilities_NC.max(axis=1)
    correct_N = probabilities_NC.argmax(axis=1) == labels_N
    bin_N = np.clip(np.ceil(confidence_N * BINS).astype(np.int64) - 1, 0, BINS - 1)
    gaps_B = np.bincount(bin_N, weights=correct_N - confidence_N, minlength=BINS)
    return float(np.abs(gaps_B).sum() / len(labels_N))


def negative_log_likelihood(probabilities_NC: Probabilities, labels_N: Codes) -> float:
    """The mean −log p of the true classes, in nats."""
    return float(-np.log(probabilities_NC[np.arange(len(labels_N)), labels_N].clip(min=SMALLEST)).mean())


def fitted_temperature(probabilities_NC: Probabilities, labels_N: Codes) -> float:
    """The temperature T at which softmax(log p / T) has the lowest NLL on these (validation) rows."""
    log_NC = np.log(probabilities_NC.clip(min=SMALLEST))

    def loss(log_temperature: float) -> float:
        return float(losses(log_NC, labels_N, np.exp(log_temperature)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=LOG_TEMPERATURES, method="bounded").x))


def at_temperature(probabilities_NC: Probabilities, temperature: float) -> Probabilities:
    """Softmax(log p / T): the same order of classes, other confidence."""
    scaled_NC: Probabilities = np.exp(log_softmax(np.log(probabilities_NC.clip(min=SMALLEST)) / temperature, axis=1))
    return scaled_NC
