"""Supervised UML: one bias-free head shared by all corpora (arXiv 2510.08492, supervised formulation).

    logits_k = s_k · W_head (W_k e_k)     W_k only where the corpus's width differs from the shared one

Shape legend: B batch, D embedding width, H shared width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor, nn

from uml_core.config import Experiment
from uml_core.data.labelled_rows import LabelledRows
from uml_core.data.row_statistics import kept_places
from uml_core.data.training_data import TrainingData
from uml_core.models.closed_form.row_space import have_equal_lengths
from uml_core.models.seeding import initialise

Features = npt.NDArray[np.float32]  # (N, H): what the target's path makes of N rows, just before the classifier
Classifier = Callable[[Features], npt.NDArray[np.float64]]  # features (N, H) to class probabilities (N, C)


PROTOTYPE_ROWS = 16_384  # read at once


class UnitLength(nn.Module):
    """Rows at unit length, in the place of a projection: what a solved head was solved for."""

    def forward(self, rows: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return nn.functional.normalize(rows, dim=-1)


class SharedHeadModel(nn.Module):
    """Per-corpus projection and scale around one shared head. All maps but the head are bias-free: the path folds.

    `bias` is for a head that is solved: one that is trained by steps has none, as in the paper.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        *,
        shared_width: int,
        num_classes: int,
        learnable_scale: bool,
        scale: float,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.shared_width = shared_width
        self.projections = nn.ModuleDict(
            {
                corpus: nn.Identity() if dim == shared_width else nn.Linear(dim, shared_width, bias=False)
                for corpus, dim in dims.items()
            }
        )
        self.scales = nn.ParameterDict(
            {corpus: nn.Parameter(torch.tensor(float(scale)), requires_grad=learnable_scale) for corpus in dims}
        )
        self.head = nn.Linear(shared_width, num_classes, bias=bias)

    def forward(self, batches: Mapping[str, Float[Tensor, "_ _"]]) -> dict[str, Float[Tensor, "_ C"]]:
        return {corpus: self.logits(corpus, embedding_BD) for corpus, embedding_BD in batches.items()}

    def logits(self, corpus: str, embedding_BD: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        logits_BC: Tensor = self.head(self.projections[corpus](embedding_BD)) * self.scales[corpus]
        return logits_BC


def build_model(experiment: Experiment, data: TrainingData) -> SharedHeadModel:
    """The model as it starts; a head that is solved (`models.closed_form.solved_head`) is one of the target alone."""
    dims = {corpus: rows.dim for corpus, rows in data.train.items()}
    if experiment.model.head != "paper":
        dim = dims[data.target]
        model = SharedHeadModel(
            {data.target: dim},
            shared_width=dim,
            num_classes=len(data.classes),
            learnable_scale=False,
            scale=1.0,
            bias=True,
        )
        initialise(model, experiment.seed)  # replaced when it is solved; `probe/untrained` measures it as it is
        if solves_unit_rows(experiment, data):
            model.projections[data.target] = UnitLength()
        return model
    init_corpus = head_init_corpus(experiment)
    model = SharedHeadModel(
        dims,
        shared_width=experiment.model.shared_width or dims[init_corpus],
        num_classes=len(data.classes),
        learnable_scale=experiment.model.learnable_scale,
        scale=experiment.model.scale_init,
    )
    initialise(model, experiment.seed)
    zero_shot = experiment.model.head_init == "zero_shot" and init_corpus != experiment.target
    if zero_shot and dims[init_corpus] == model.shared_width:
        prototypes_CH = class_prototypes(data.train[init_corpus], len(data.classes), experiment.model.normalize)
        has_prototype_C = prototypes_CH.norm(dim=1) > 0
        with torch.no_grad():
            model.head.weight[has_prototype_C] = prototypes_CH[has_prototype_C]
    return model


def solves_unit_rows(experiment: Experiment, data: TrainingData) -> bool:
    """Whether a solved head takes the target's rows at unit length: by its kept train rows where not told to."""
    if experiment.model.normalize:
        return True
    train = data.train[data.target]
    if data.target in data.statistics:
        return have_equal_lengths(data.statistics[data.target].kept)
    return have_equal_lengths(train.embeddings[train.rows[kept_places(train) >= 0]])


def head_init_corpus(experiment: Experiment) -> str:
    """The corpus whose class means start the head, and whose width is the shared one.

    It is model.init_corpus, else the first auxiliary text corpus, else the first auxiliary corpus, else the target;
    corpora kept as unrelated controls come last.
    """
    if experiment.model.init_corpus is not None:
        return experiment.model.init_corpus
    related = [name for name in experiment.auxiliaries if experiment.corpora[name].control != "unrelated"]
    text = [name for name in related if experiment.corpora[name].modality == "text"]
    return (text or related or [*experiment.auxiliaries, experiment.target])[0]


def class_prototypes(rows: LabelledRows, num_classes: int, normalize: bool) -> Float[Tensor, "C D"]:
    """Each class's mean embedding scaled to unit length (C, D); zeros for a class without rows."""
    sums_CD = torch.zeros(num_classes, rows.dim)
    for block_ND, labels_N in rows.blocks(PROTOTYPE_ROWS):
        embeddings = torch.from_numpy(block_ND)
        if normalize:
            embeddings = nn.functional.normalize(embeddings, dim=-1)
        sums_CD.index_add_(0, torch.from_numpy(labels_N), embeddings)
    counts_C1 = torch.from_numpy(np.bincount(rows.labels, minlength=num_classes)).clamp(min=1).unsqueeze(1)
    return nn.functional.normalize(sums_CD / counts_C1, dim=-1)


def folded_target_head(model: SharedHeadModel, target: str) -> dict[str, Tensor]:
    """The target's whole path: head.weight (C, D), s · W_head · W_target, and head.bias (C,) where the head has one."""
    projection, scale = model.projections[target], model.scales[target]
    with torch.no_grad():
        head_CH, bias_C = model.head.weight, model.head.bias
        weight_CD = head_CH @ projection.weight if isinstance(projection, nn.Linear) else head_CH
        bias = {} if bias_C is None else {"head.bias": bias_C * scale}
        return {name: value.cpu().contiguous() for name, value in {"head.weight": weight_CD * scale, **bias}.items()}
