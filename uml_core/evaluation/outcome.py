"""What a training run measures and what it comes to, under the names MLflow knows it by.

In: a `TrainingRun`. Out: `MetricPoint`s, and a `RunOutcome`, which a worker of `train` hands to the driver as JSON.

Test accuracy is also told by how many train rows a class has: none (unseen), or few, some and many (long tails). Such
accuracies are means over classes, each class of one weight, and every row is classified among all classes, as in
generalised zero-shot learning (Xian et al. 2017); the area under the seen-unseen curve is that of Chao et al. 2016.

Shape legend: N rows, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file

from uml_core.evaluation.run import Codes, EvaluatedRun, Probabilities
from uml_core.tracking.records import MetricPoint, metric_points
from uml_core.training.run import Evaluation, TrainingRun

MANY, FEW = 20, 5  # train rows: head is above MANY, tail below FEW
SMALLEST = 1e-300  # a probability that is 0 in float64


@dataclass
class RunOutcome:
    """Key results of one training run; accuracies in [0, 1], test None where the target has no test split."""

    run_id: str
    val_accuracy: float
    test_accuracy: float | None
    shift_accuracy: dict[str, float]
    best_step: int
    steps: int
    steps_per_s: float
    train_s: float
    samples_per_s: float
    target_samples: int
    observed_ratio: dict[str, float]
    trained_parameters: int
    parameters: int  # of the same modules, frozen ones too, but not of a frozen encoder before the store
    train_rows: dict[str, int]  # of each corpus, after shots
    classes: int
    model_uri: str = ""
    test_groups: dict[str, float] = field(default_factory=dict)  # as `group_accuracies` names them
    val_rows: int = 0

    def points(self) -> list[MetricPoint]:
        values: dict[str, float | None] = {
            "val/accuracy": self.val_accuracy,
            "test/accuracy": self.test_accuracy,
            **{f"test/{name}": accuracy for name, accuracy in self.test_groups.items()},
            **{f"shift/{split}/accuracy": accuracy for split, accuracy in self.shift_accuracy.items()},
            **{f"mixing/observed_ratio/{corpus}": ratio for corpus, ratio in self.observed_ratio.items()},
            "mixing/target_samples": self.target_samples,
            **{f"data/train_rows/{corpus}": rows for corpus, rows in self.train_rows.items()},
            "data/val_rows": self.val_rows,
            "data/classes": self.classes,
            "perf/samples_per_s": self.samples_per_s,
            "perf/train_s": self.train_s,
            "perf/steps": self.steps,
            "model/trained_parameters": self.trained_parameters,
            "model/parameters": self.parameters,
        }
        return metric_points(values, self.steps)

    def as_json(self) -> dict[str, Any]:
        return dict(vars(self))


def evaluated_run(run: TrainingRun) -> EvaluatedRun:
    """Load the best weights of a finished run, and show it as evaluators see it, without ids."""
    run.load_best()
    return EvaluatedRun(run.experiment, run.data, run.objective)


def measure_outcome(run: TrainingRun) -> RunOutcome:
    """Load the best weights of a finished run and measure it on test: once, after selection."""
    evaluated = evaluated_run(run)
    outcome = _outcome(run, {split: evaluated.accuracy(split) for split in evaluated.tested})
    if evaluated.has_test:
        tested = evaluated.probabilities("test"), evaluated.labels("test")
        outcome.test_groups = group_accuracies(*tested, evaluated.train_rows)
    return outcome


def outcome_points(run: TrainingRun) -> list[MetricPoint]:
    """What a finished run comes to as metrics, without a look at test."""
    return _outcome(run, {}).points()


def _outcome(run: TrainingRun, tested: Mapping[str, float]) -> RunOutcome:
    assert run.best is not None
    data, progress = run.data, run.progress
    return RunOutcome(
        run_id="",  # the driver's to say
        val_accuracy=run.best.val_accuracy,
        test_accuracy=tested.get("test"),
        shift_accuracy={split: accuracy for split, accuracy in tested.items() if split != "test"},
        best_step=run.best.step,
        steps=progress.step,
        steps_per_s=progress.step / progress.train_s if progress.train_s else 0.0,
        train_s=progress.train_s,
        samples_per_s=sum(progress.samples.values()) / progress.train_s if progress.train_s else 0.0,
        target_samples=progress.samples[data.target],
        observed_ratio={corpus: run.observed_ratio(corpus) for corpus in data.train if corpus != data.target},
        trained_parameters=trained_parameters(run),
        parameters=sum(
            parameter.numel() for module in run.objective.target_path() for parameter in module.parameters()
        ),
        train_rows={corpus: rows.total for corpus, rows in data.train.items()},
        classes=len(data.classes),
        val_rows=len(data.val),
    )


def trained_parameters(run: TrainingRun) -> int:
    """The number of trained parameters on the target's path: what a matched baseline must have as well."""
    on_path = [parameter for module in run.objective.target_path() for parameter in module.parameters()]
    return sum(parameter.numel() for parameter in on_path if parameter.requires_grad)


def evaluation_points(run: TrainingRun, evaluation: Evaluation) -> list[MetricPoint]:
    values = {
        "val/accuracy": evaluation.val_accuracy,
        "val/nll": evaluation.val_nll,
        **{f"train/loss/{corpus}": loss for corpus, loss in evaluation.losses.items()},
        **{f"analysis/gradient_cosine/{name}": cosine for name, cosine in evaluation.gradient_cosine.items()},
        **{f"mixing/observed_ratio/{name}": run.observed_ratio(name) for name in run.experiment.auxiliaries},
        **{f"mixing/loss_weight/{name}": weight for name, weight in run.scheduled_weights().items()},
        "mixing/target_samples": run.progress.samples[run.data.target],
        "perf/samples_per_s": evaluation.samples_per_s,
        "perf/data_wait_s": evaluation.data_wait_s,
        **({"perf/compiled": float(run.model.is_compiled)} if run.experiment.train.compile else {}),
    }
    return metric_points(values, evaluation.step)


def save_weights(weights: Mapping[str, torch.Tensor], directory: Path) -> Path:
    """Write a model's `state_dict()` as model.safetensors; returns the file."""
    file = directory / "model.safetensors"
    save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, file)
    return file


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
