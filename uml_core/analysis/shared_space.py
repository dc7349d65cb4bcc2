"""A trained run as analyses see it: embeddings of any corpus in the shared space, and the head's rows there.

In: an experiment, its trained model and its data, and what is known of the raw rows. Out: plain arrays. What an
analysis makes of them is an `AnalysisResult`.

Shape legend: N rows, D embedding width, H shared width, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from uml_core.analysis.raw_rows import RawRows
from uml_core.config import Experiment
from uml_core.data.labelled_rows import LabelledRows
from uml_core.data.training_data import TrainingData
from uml_core.errors import InputError, listing, nearest
from uml_core.figures.drawing import ReportFigure
from uml_core.models import SharedHeadModel

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class AnalysisResult:
    """Metrics by their MLflow names (analysis/...), figures, CSV tables by file name, and lines of summary."""

    metrics: dict[str, float] = field(default_factory=dict)
    figures: tuple[ReportFigure, ...] = ()
    tables: dict[str, str] = field(default_factory=dict)
    summary: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainedRun:
    """What an analysis reads. `raw` and `pairs` are for evaluation only: no training ever sees a row's identity."""

    experiment: Experiment
    model: SharedHeadModel
    data: TrainingData
    raw: Mapping[str, RawRows] = field(default_factory=dict)  # corpus -> ids and, where readable, raw rows
    pairs: Mapping[str, Codes] | None = None  # corpus -> table rows (P,): row p of each belong together
    plane_classes: tuple[str, str] | None = None  # None: the two most confused

    @property
    def held_out(self) -> LabelledRows:
        """The target's test rows; its validation rows where it has no test split."""
        return self.data.val if self.data.test is None else self.data.test

    @property
    def held_out_words(self) -> str:
        """The name of the split that `held_out` returns."""
        return "validation" if self.data.test is None else "test"

    def embeddings(self, corpus: str, rows: LabelledRows, *, model: SharedHeadModel | None = None) -> Floats:
        """Rows in the shared space (N, H) of the trained (or another) model: projected, not scaled."""
        normalize = self.experiment.model.normalize
        return shared_embeddings(model or self.model, corpus, rows.gathered(), normalize=normalize)

    def head(self, corpus: str, *, model: SharedHeadModel | None = None) -> Floats:
        """The head's rows (C, H), turned around where the corpus's learned scale is negative.

        Only the sign of a scale decides who wins; its size scales all logits alike.
        """
        chosen = model or self.model
        scale = float(chosen.scales[corpus].detach())
        rows_CH: Floats = chosen.head.weight.detach().double().cpu().numpy()
        return rows_CH * (-1.0 if scale < 0 else 1.0)

    def class_code(self, name: str) -> int:
        """A class's code. Raises InputError for a class the target lacks."""
        if name not in self.data.classes:
            raise InputError(
                f"--classes names '{name}'; the target's classes are {listing(self.data.classes)}"
                f"{nearest(name, self.data.classes)}"
            )
        return self.data.classes.index(name)


@torch.inference_mode()
def shared_embeddings(
    model: SharedHeadModel, corpus: str, embedding_ND: npt.NDArray[np.float32], *, normalize: bool
) -> Floats:
    """Embeddings (N, D) of a corpus in the shared space (N, H)."""
    device = next(model.parameters()).device
    tensor_ND = torch.from_numpy(np.ascontiguousarray(embedding_ND)).to(device)
    if normalize:
        tensor_ND = nn.functional.normalize(tensor_ND, dim=-1)
    shared_NH: Floats = model.projections[corpus](tensor_ND).double().cpu().numpy()
    return shared_NH


def class_means(values_NU: Floats, labels_N: Codes, num_classes: int) -> Floats:
    """Each class's mean row (C, U); NaN for a class without rows."""
    sums_CU = np.zeros((num_classes, values_NU.shape[1]))
    np.add.at(sums_CU, labels_N, values_NU)
    counts_C1 = np.bincount(labels_N, minlength=num_classes)[:, None].astype(np.float64)
    counts_C1[counts_C1 == 0] = np.nan
    means_CU: Floats = sums_CU / counts_C1
    return means_CU
