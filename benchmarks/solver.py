"""L-BFGS against AdamW on a head without projections: CPU seconds to the same validation loss, on one thread.

There are two goals: 1 % above the lowest validation loss that any of the runs reaches, and half a point below the
highest accuracy. AdamW takes the best of two rates and three lengths of its cosine schedule, L-BFGS of four penalties;
the search is not counted. Seconds are the process's own CPU time in steps, so that a busy machine matters little;
evaluations are not in them.

    python -m benchmarks.solver
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from unittest import mock

import numpy as np
import torch

from uml_core.config import Experiment, parse_experiment
from uml_core.data.training_data import TrainingData, build_training_data
from uml_core.store.corpus_table import CorpusTable
from uml_core.training.run import TrainingRun

SIZES = [(rows, *head) for rows in (500, 5_000, 50_000) for head in ((384, 10), (1280, 100))]
VAL_ROWS, DISTANCE = 2_000, 5.0  # of class means, in standard deviations of a feature
TOLERANCE, POINTS = 1.01, 0.005
RATES, LENGTHS, PENALTIES = (1e-3, 1e-2), (500, 2_000, 8_000), (1e-3, 3e-3, 1e-2, 1e-1)
SOLVE = {"optim.name": "lbfgs", "train.max_steps": 60, "train.eval_every": 1, "train.patience": 5}  # iterations
STEP = {"optim.name": "adamw", "train.eval_every": 50, "train.patience": 10**6}


@dataclass(frozen=True)
class Path:
    """Validation loss and accuracy of a run, with the CPU seconds of its steps until then."""

    seconds: list[float]
    losses: list[float]
    accuracies: list[float]

    def seconds_to(self, *, loss: float = float("inf"), accuracy: float = 0.0) -> float:
        """The CPU seconds until a loss and an accuracy are reached at once; infinity if they are not."""
        found = zip(self.seconds, self.losses, self.accuracies, strict=True)
        return next((s for s, low, high in found if low <= loss and high >= accuracy), float("inf"))


def experiment_of(**changes: object) -> Experiment:
    """The experiment of a head on the target alone."""
    tree = {
        "name": "solver",
        "store": "store",
        "target": "target",
        "corpora": {"target": {"modality": "vector", "format": "embeddings", "path": "target"}},
        "model": {"head_init": "random", "learnable_scale": False},
    }
    return parse_experiment(tree).override(changes)


def table_of(rows: int, width: int, classes: int) -> CorpusTable:
    """Rows in equal classes around random means."""
    rng = np.random.default_rng(0)
    codes = np.arange(rows + VAL_ROWS) % classes
    means = rng.normal(size=(classes, width)) * DISTANCE / np.sqrt(2 * width)
    embeddings = (means[codes] + rng.normal(size=(len(codes), width))).astype(np.float32)
    names = tuple(f"{code:03}" for code in range(classes))
    splits = (np.arange(len(codes)) >= rows).astype(np.int64)
    return CorpusTable(embeddings, codes.astype(np.int64), names, splits, ("train", "val"))


def path_of(experiment: Experiment, data: TrainingData) -> Path:
    """Train and note how the validation loss falls."""
    path = Path([], [], [])
    with mock.patch("uml_core.training.run.time.perf_counter", time.process_time):  # of its steps alone
        run = TrainingRun(experiment, data)
        for evaluation in run.evaluations():
            path.seconds.append(run.progress.train_s)
            path.losses.append(evaluation.val_nll)
            path.accuracies.append(evaluation.val_accuracy)
    return path


def main() -> None:
    """Print a row for each size."""
    torch.set_num_threads(1)
    settings = {
        "lbfgs": {f"{each:g}": experiment_of(**SOLVE, **{"optim.weight_decay": each}) for each in PENALTIES},
        "adamw": {
            f"{rate:g}, {steps} steps": experiment_of(**STEP, **{"optim.lr": rate, "train.max_steps": steps})
            for rate in RATES
            for steps in LENGTHS
        },
    }
    columns = "CPU s to the loss, lowest loss (setting), CPU s to the accuracy, highest accuracy %"
    print(f"rows, width, classes | lbfgs: {columns} | adamw: the same")
    for rows, width, classes in SIZES:
        tables = {"target": table_of(rows, width, classes)}
        paths = {
            name: {value: path_of(each, build_training_data(each, tables)) for value, each in tried.items()}
            for name, tried in settings.items()
        }
        everything = [path for tried in paths.values() for path in tried.values()]
        loss = TOLERANCE * min(min(path.losses) for path in everything)
        accuracy = max(max(path.accuracies) for path in everything) - POINTS
        cells = (shown(tried, loss, accuracy) for tried in paths.values())
        print(f"{rows}, {width}, {classes}", *cells, sep=" | ", flush=True)


def shown(tried: Mapping[str, Path], loss: float, accuracy: float) -> str:
    """What the best setting for each goal has come to; `>` where none reaches it, and how long they took."""
    lowest = min(tried.values(), key=lambda path: min(path.losses))
    setting = next(value for value, path in tried.items() if path is lowest)
    highest = 100 * max(max(path.accuracies) for path in tried.values())
    to_loss = _first(tried, loss=loss)
    return f"{to_loss}, {min(lowest.losses):.3f} ({setting}), {_first(tried, accuracy=accuracy)}, {highest:.1f}"


def _first(tried: Mapping[str, Path], **goal: float) -> str:
    seconds = min(path.seconds_to(**goal) for path in tried.values())
    return f"{seconds:.2f}" if np.isfinite(seconds) else f"> {max(path.seconds[-1] for path in tried.values()):.2f}"


if __name__ == "__main__":
    main()
