"""What is known of a training run: its progress, the steps since the last evaluation, an evaluation, the best model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from torch import Tensor

Update = tuple[int, tuple[str, ...]]  # its step and corpora


@dataclass(frozen=True)
class Evaluation:
    """What is known after an evaluation at `step` (optimiser steps done so far)."""

    step: int
    val_accuracy: float
    val_nll: float  # mean negative log-likelihood, nats
    losses: dict[str, float]  # mean training loss of each corpus since the last evaluation
    samples_per_s: float
    data_wait_s: float  # seconds spent assembling batches so far
    gradient_cosine: dict[str, float] = field(default_factory=dict)  # target against corpus; train.gradient_cosine


@dataclass(frozen=True)
class BestModel:
    """The model that validated best: higher accuracy, and at equal accuracy lower NLL."""

    step: int
    val_accuracy: float
    val_nll: float
    weights: dict[str, Tensor]  # whole; of a sharded run on rank 0 alone


@dataclass(frozen=True)
class TrainedSteps:
    """The steps between two evaluations, once they are done."""

    until: int  # optimiser steps done so far
    last_update: Update | None
    losses: dict[str, float]  # mean of each corpus
    samples: Counter[str]
    train_s: float
    data_wait_s: float


@dataclass
class Progress:
    """The loop's own state, saved and restored with the model."""

    step: int = 0
    bad_evaluations: int = 0
    samples: Counter[str] = field(default_factory=Counter)
    train_s: float = 0.0
    data_wait_s: float = 0.0
    finished: bool = False
