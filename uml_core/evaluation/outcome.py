"""What a training run measures and what it comes to, under the names MLflow knows it by.

In: a `TrainingRun`. Out: `MetricPoint`s, and a `RunOutcome`, which a worker of `train` hands to the driver as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from uml_core.evaluation.class_groups import group_accuracies
from uml_core.evaluation.run import EvaluatedRun
from uml_core.tracking.records import MetricPoint, metric_points
from uml_core.training.run import Evaluation, TrainingRun


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
    test_groups: dict[str, float] = field(default_factory=dict)  # by uml_core.evaluation.class_groups

    def points(self) -> list[MetricPoint]:
        values: dict[str, float | None] = {
            "val/accuracy": self.val_accuracy,
            "test/accuracy": self.test_accuracy,
            **{f"test/{name}": accuracy for name, accuracy in self.test_groups.items()},
            **{f"shift/{split}/accuracy": accuracy for split, accuracy in self.shift_accuracy.items()},
            **{f"mixing/observed_ratio/{corpus}": ratio for corpus, ratio in self.observed_ratio.items()},
            "mixing/target_samples": self.target_samples,
            **{f"data/train_rows/{corpus}": rows for corpus, rows in self.train_rows.items()},
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
        train_rows={corpus: len(rows) for corpus, rows in data.train.items()},
        classes=len(data.classes),
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
