"""Heads of the target's embeddings that are solved, not trained by steps (`model.head`).

In: an experiment's rows. Out: the head's weight (C, D) and bias (C,), such that softmax of its logits is calibrated.

Shape legend: N rows, C classes, D embedding width.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from uml_core.config import Experiment
from uml_core.data.labelled_rows import LabelledRows
from uml_core.data.training_data import TrainingData
from uml_core.errors import InputError, listing
from uml_core.models.discriminant import prior_of_rows
from uml_core.models.linear_probe import LinearProbe
from uml_core.models.prior_head import fit_prior_head
from uml_core.models.prior_model import unit_rows
from uml_core.models.shared_head import solves_unit_rows
from uml_core.store.mapped_table import is_mapped


def solve_head(experiment: Experiment, data: TrainingData) -> tuple[Tensor, Tensor]:
    """The weight (C, D) and bias (C,) of the head that model.head names, float32.

    Every kind searches its own scales: logistic by the validation rows, the others on the train rows alone.

    Raises:
        InputError: a corpus is read from a file because it does not fit in memory.
    """
    mapped = [corpus for corpus, rows in data.train.items() if is_mapped(rows.embeddings)]
    if mapped:
        raise InputError(
            f"model.head is {experiment.model.head}, which takes all rows at once, and {listing(mapped)} does not fit "
            f"into feed.memory_gib {experiment.feed.memory_gib:g}; raise it, or set model.head=paper"
        )

    is_unit = solves_unit_rows(experiment, data)

    def rows_of(rows: LabelledRows) -> npt.NDArray[np.float64]:
        values: npt.NDArray[np.float64] = rows.gathered().astype(np.float64)
        return unit_rows(values) if is_unit else values

    train, num_classes = data.train[data.target], len(data.classes)
    if experiment.model.head == "logistic":
        fitting, validating = ((rows_of(rows).astype(np.float32), rows.labels) for rows in (train, data.val))
        probe, _ = LinearProbe.fit_validated(fitting, validating, num_classes)
        return _as_tensors(probe.weight, probe.bias)
    head = experiment.model.head
    auxiliaries = experiment.active_auxiliaries if head == "prior" else ()
    priors = [
        prior_of_rows(name, rows_of(data.train[name]), data.train[name].labels, num_classes, dim=train.dim)
        for name in auxiliaries
    ]
    fitted = fit_prior_head(rows_of(train), train.labels, num_classes, priors, discriminates=head != "ridge")
    return _as_tensors(fitted.weight.T / fitted.temperature, fitted.bias / fitted.temperature)


def _as_tensors(weight_CD: npt.NDArray[np.float64], bias_C: npt.NDArray[np.float64]) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(weight_CD.astype(np.float32)), torch.from_numpy(bias_C.astype(np.float32))
