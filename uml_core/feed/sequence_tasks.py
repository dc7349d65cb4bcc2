"""The two tasks of self-supervised training: which tokens of a sequence go in, and which are to be predicted.

next_token: every token from those before it. A causal model never looks back from a sequence's last token, and nothing
is predicted from it: it stays out of the input, one row less a sequence, and neither loss nor gradient changes.
masked_token: hidden tokens from all others. Sequences of one token are reconstructed in both.

Shape legend: S sequences, R input rows, M predicted tokens.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from uml_core.data.sequence_data import token_places

Places = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Prediction:
    """What a task makes of S sequences: places of input and target tokens in the table.

    `hidden` (R,) are input rows the model must not see, `scored` (M,) the rows to predict from; None: no row, all rows.
    """

    input_lengths: Places
    input_places: Places
    target_places: Places
    hidden: Mask | None = None
    scored: Places | None = None


def next_token(starts: Places, lengths: Places) -> Prediction:
    """Return the task of predicting every token but the first; a sequence of one token predicts itself."""
    input_lengths = np.maximum(lengths - 1, 1)
    places = token_places(starts, input_lengths)
    ahead = np.repeat((lengths > 1).astype(np.int64), input_lengths)
    return Prediction(input_lengths, places, places + ahead)


def masked_token(starts: Places, lengths: Places, hidden: Mask) -> Prediction:
    """Return the task of predicting the hidden tokens; a sequence of one token predicts itself, in sight."""
    places = token_places(starts, lengths)
    scored = hidden | np.repeat(lengths == 1, lengths)
    return Prediction(lengths, places, places[scored], hidden, np.flatnonzero(scored))


def hidden_tokens(lengths: Places, share: float, *, seed: int, step: int, corpus: str) -> Mask:
    """Draw which tokens of some sequences are hidden (R,): each with probability `share`, and at least one a sequence.

    The only token of a sequence is never hidden.
    """
    rng = np.random.default_rng([seed % 2**32, zlib.crc32(corpus.encode()), step])
    lot = rng.random(int(lengths.sum()))
    first = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    lowest = np.repeat(np.minimum.reduceat(lot, first), lengths)
    hidden: Mask = ((lot < share) | (lot == lowest)) & np.repeat(lengths > 1, lengths)
    return hidden


def num_targets(lengths: Places, hidden: Mask | None) -> int:
    """Return how many tokens are predicted in sequences of some lengths: of all ranks, known to every one of them."""
    if hidden is None:
        return int(np.maximum(lengths - 1, 1).sum())
    return int(hidden.sum() + (lengths == 1).sum())
