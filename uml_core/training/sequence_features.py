"""The representation of self-supervised training: the mean of the trunk's output over a sequence.

In: a model and sequences of one of its corpora. Out: one vector a sequence. The trunk is never fitted to a label.

Shape legend: N sequences, H shared width.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from uml_core.data.sequence_data import SequenceRows, token_places
from uml_core.feed.embeddings import as_tensor
from uml_core.models.representation import Features
from uml_core.models.sequence.sequence_model import SequenceModel

ROWS_AT_ONCE = 16_384  # tokens in one pass of the trunk


@torch.inference_mode()
def sequence_features(model: SequenceModel, corpus: str, rows: SequenceRows) -> Features:
    """Return the trunk's mean output over each sequence (N, H); leaves the model's mode as it was."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    tokens, starts, lengths = as_tensor(rows.table.tokens), rows.starts, rows.lengths
    features, first = [np.empty((0, model.config.width), dtype=np.float32)], 0
    for last in _cuts(lengths):
        places = token_places(starts[first:last], lengths[first:last])
        taken = tokens.index_select(0, torch.from_numpy(places)).to(device)
        features.append(model.features(corpus, taken, lengths[first:last]).float().cpu().numpy())
        first = last
    model.train(was_training)
    return np.concatenate(features)


def _cuts(lengths: npt.NDArray[np.int64]) -> list[int]:
    """Return where to cut N sequences so that a piece has about ROWS_AT_ONCE tokens."""
    pieces = np.cumsum(lengths) // ROWS_AT_ONCE
    return [*np.flatnonzero(np.diff(pieces)) + 1, len(lengths)] if len(lengths) else []
