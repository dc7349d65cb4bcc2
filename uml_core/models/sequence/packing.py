"""Sequences of unequal lengths as one matrix of rows without padding, and the blocks attention cuts them into.

A batch of S sequences is packed: their tokens lie one after another in R = Σ T_s rows, and everything that works row by
row (projections, normalisation, feed-forward) never sees padding. Attention needs the sequences apart: they are sorted
by length and cut into blocks, so that the padding inside a block is small, and no padded key is ever attended to.

Shape legend: S sequences, T tokens of a sequence, R rows (tokens of all sequences), P rows with a block's padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Lengths = npt.NDArray[np.int64]

BLOCK_SCORES = 2**17  # attention scores of one head in a block: what stays in a core's cache, and enough for one call


@dataclass(frozen=True)
class Block:
    """Some sequences of like length: their number, the padded length T, and the bias (1 or S, 1 or T, T) of scores.

    The bias is 0 where a query may look and -inf where it may not: at later tokens, or at padding.
    """

    num_sequences: int
    num_tokens: int
    bias: Tensor


@dataclass(frozen=True)
class Packing:
    """Where the rows of a packed batch belong.

    Attributes:
        lengths: tokens of each sequence (S,).
        positions: each row's position in its sequence (R,).
        sequences: the sequence each row belongs to (R,).
        padded_from: the row that each position of the blocks is filled from (P,); padding is filled from row 0.
        row_to_padded: the position in the blocks that holds each row (R,).
        blocks: the blocks, in the order of P.
    """

    lengths: Lengths
    positions: Tensor
    sequences: Tensor
    padded_from: Tensor
    row_to_padded: Tensor
    blocks: tuple[Block, ...]

    @property
    def num_rows(self) -> int:
        return len(self.positions)


def pack(lengths: Lengths, *, causal: bool, device: torch.device | str = "cpu") -> Packing:
    """Plan the blocks of sequences of some lengths (S,), all of them at least 1."""
    assert len(lengths), "an empty batch is never packed"
    assert int(lengths.min()) >= 1, lengths
    starts = np.concatenate([[0], np.cumsum(lengths)])
    num_rows = int(starts[-1])
    sequence_R = np.repeat(np.arange(len(lengths)), lengths)
    position_R = np.arange(num_rows) - starts[sequence_R]
    padded_from, row_to_padded, blocks = [], np.empty(num_rows, dtype=np.int64), []
    start = 0
    for members in _blocks_of(lengths):
        longest = int(lengths[members].max())
        column = np.arange(longest)
        is_token = column[None] < lengths[members, None]
        rows = np.where(is_token, starts[members, None] + column[None], 0)
        row_to_padded[rows[is_token]] = start + np.flatnonzero(is_token)
        padded_from.append(rows.reshape(-1))
        blocks.append(Block(len(members), longest, _bias(is_token, causal=causal).to(device)))
        start += rows.size
    return Packing(
        lengths=lengths,
        positions=torch.from_numpy(position_R).to(device),
        sequences=torch.from_numpy(sequence_R).to(device),
        padded_from=torch.from_numpy(np.concatenate(padded_from)).to(device),
        row_to_padded=torch.from_numpy(row_to_padded).to(device),
        blocks=tuple(blocks),
    )


def masked_mean(values_RH: Tensor, packing: Packing) -> Tensor:
    """The mean over each sequence's own rows (S, H): padding does not exist here."""
    sums_SH = values_RH.new_zeros(len(packing.lengths), values_RH.shape[1])
    sums_SH.index_add_(0, packing.sequences, values_RH)
    lengths_S = torch.from_numpy(packing.lengths).to(values_RH.device, values_RH.dtype)
    return sums_SH / lengths_S[:, None]


def _blocks_of(lengths: Lengths) -> list[npt.NDArray[np.int64]]:
    """Cut the sequences, longest first, into blocks of about BLOCK_SCORES scores; at least one sequence each."""
    order = np.argsort(-lengths, kind="stable")
    blocks, start = [], 0
    while start < len(order):
        longest = int(lengths[order[start]])
        count = max(1, BLOCK_SCORES // longest**2)
        # A block ends where the lengths have fallen by a fifth: padding would cost more than another call.
        alike = int(np.searchsorted(-lengths[order], -0.8 * longest, side="right"))
        stop = min(start + count, max(alike, start + 1))
        blocks.append(order[start:stop])
        start = stop
    return blocks


def _bias(is_token_ST: npt.NDArray[np.bool_], *, causal: bool) -> Tensor:
    """What is added to a block's scores: for causal attention one triangle, else a row of keys a sequence.

    Under a causal mask padding, which lies at the end, is out of every token's sight already.
    """
    longest = is_token_ST.shape[1]
    if causal:
        return torch.full((longest, longest), float("-inf")).triu(1)[None]
    hidden_ST = torch.from_numpy(~is_token_ST)
    return torch.zeros(hidden_ST.shape).masked_fill(hidden_ST, float("-inf"))[:, None]
