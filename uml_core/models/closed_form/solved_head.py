"""Heads of the target's embeddings that are solved, not trained by steps (`model.head`).

In: an experiment's rows, or what was added up of them. Out: the head's weight (C, D) and bias (C,), such that softmax
of its logits is calibrated.

Shape legend: N rows, C classes, D embedding width.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from uml_core.config import Experiment
from uml_core.data.labelled_rows import LabelledRows
from uml_core.data.row_statistics import KEPT_ROWS, RowStatistics
from uml_core.data.training_data import TrainingData
from uml_core.errors import InputError, listing
from uml_core.models.closed_form.bridge import over_bridges
from uml_core.models.closed_form.bridged_data import bridge_of
from uml_core.models.closed_form.discriminant import prior_of_rows, prior_of_statistics
from uml_core.models.closed_form.prior_head import fit_from_statistics, fit_prior_head
from uml_core.models.closed_form.prior_model import ClassPrior, unit_rows
from uml_core.models.closed_form.summing import Summing, check_solvable
from uml_core.models.closed_form.unlabelled import fit_pooled_head
from uml_core.models.linear_probe import LinearProbe
from uml_core.models.shared_head import solves_unit_rows
from uml_core.store.corpus_table import is_unread
from uml_core.store.mapped_table import is_mapped


def solve_head(experiment: Experiment, data: TrainingData) -> tuple[Tensor, Tensor]:
    """The weight (C, D) and bias (C,) of the head that model.head names, float32.

    Every kind searches its own scales: logistic by the validation rows, the others on the train rows alone.

    Raises:
        InputError: logistic, and the target is read from a file because it does not fit in memory.
    """
    train, num_classes, is_unit = data.train[data.target], len(data.classes), solves_unit_rows(experiment, data)
    if experiment.model.head == "logistic":
        check_solvable(experiment, [data.target] if is_mapped(train.embeddings) else [])
        fitting, validating = ((_rows_of(rows, is_unit).astype(np.float32), rows.labels) for rows in (train, data.val))
        probe, _ = LinearProbe.fit_validated(fitting, validating, num_classes)
        return _as_tensors(probe.weight, probe.bias)
    priors = [_prior(data, name, is_unit) for name in experiment.solved_from[1:]]
    if priors:
        priors += over_bridges(priors, [bridge_of(rows) for rows in data.bridges])[0]
    discriminates = experiment.model.head != "ridge"
    if piles := [rows for rows in data.unlabelled.values() if len(rows)]:
        if any(is_mapped(rows.embeddings) or is_unread(rows.embeddings) for rows in (train, *piles)):
            raise InputError(
                f"{listing(data.unlabelled)} has role: unlabelled, whose rows are all taken at once; they or the "
                f"target's rows do not fit into feed.memory_gib {experiment.feed.memory_gib:g}; raise it, or take fewer"
            )
        pile_UD = np.concatenate([_rows_of(rows, is_unit) for rows in piles])
        own = _rows_of(train, is_unit), train.labels, num_classes, priors
        fitted = fit_pooled_head(*own, pile_UD, discriminates=discriminates).head
    elif train.total > KEPT_ROWS:
        statistics = _statistics(data, data.target, is_unit)
        kept = unit_rows(statistics.kept.astype(np.float64)) if is_unit else statistics.kept
        fitted = fit_from_statistics(replace(statistics, kept=kept), priors, discriminates=discriminates)
    else:
        rows_ND = _rows_of(train, is_unit)
        fitted = fit_prior_head(rows_ND, train.labels, num_classes, priors, discriminates=discriminates)
    return _as_tensors(fitted.weight.T / fitted.temperature, fitted.bias / fitted.temperature)


def _prior(data: TrainingData, corpus: str, is_unit: bool) -> ClassPrior:
    rows = data.train[corpus]
    if corpus in data.statistics or is_mapped(rows.embeddings):
        return prior_of_statistics(corpus, _statistics(data, corpus, is_unit))
    dim, num_classes = data.train[data.target].dim, len(data.classes)
    return prior_of_rows(corpus, _rows_of(rows, is_unit), rows.labels, num_classes, dim=dim)


def _statistics(data: TrainingData, corpus: str, is_unit: bool) -> RowStatistics:
    if corpus in data.statistics:
        return data.statistics[corpus]
    return Summing.of_corpus(data, corpus, is_unit=is_unit).add_up_rows(data.train[corpus])


def _rows_of(rows: LabelledRows, is_unit: bool) -> npt.NDArray[np.float64]:
    values: npt.NDArray[np.float64] = rows.gathered().astype(np.float64)
    return unit_rows(values) if is_unit else values


def _as_tensors(weight_CD: npt.NDArray[np.float64], bias_C: npt.NDArray[np.float64]) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(weight_CD.astype(np.float32)), torch.from_numpy(bias_C.astype(np.float32))
