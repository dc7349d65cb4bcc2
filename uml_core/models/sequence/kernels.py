"""What the trunk's layers spend their time on, written for a CPU's caches: dropout, attention, feed-forward.

    out_s = softmax(q_s k_sᵀ / √d + bias) v_s     for every sequence s and head, with dropout on the softmax
    out = relu(dropout(x W1ᵀ + b1)) W2ᵀ + b2      row by row

Dropout: torch draws a Bernoulli number a unit (7 to 10 ns each, measured), which is more time than the products of the
layer it regularises. Here one byte of a random 64-bit integer decides one unit, at a tenth of the cost. Eight bits make
p a multiple of 1/256: .1 becomes 26/256. The scale 1 / (1 − p) uses that p, so the expected value is kept exactly.

Feed-forward: for H = 40 and F = 2048 the hidden activations are 50 times as wide as input and output. On a CPU a block
of rows goes all the way through while its hidden part stays in the core's own cache.

Shape legend: R rows of the packed batch, P rows with padding, H width, F hidden width, S sequences of a block, h heads,
T tokens, d width of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from uml_core.models.sequence.packing import Packing

LEVELS = 256  # values of a random byte
BLOCK_FLOATS = 2**18  # hidden units of a block of rows: 1 MiB, half of a server core's level-2 cache


def effective_dropout(p: float) -> float:
    """The probability that is drawn for a wanted p: the nearest multiple of 1/256."""
    return round(p * LEVELS) / LEVELS


def keep_mask(shape: tuple[int, ...], p: float, *, generator: torch.Generator, device: torch.device) -> Tensor:
    """A mask of uint8, 1 with probability 1 − `effective_dropout(p)` and else 0, decided by the generator.

    The generator is one of the CPU; for another device it draws the seed of that device's own.
    """
    dropped = round(p * LEVELS)
    if not dropped:
        return torch.ones(shape, dtype=torch.uint8, device=device)
    if device.type != "cpu":
        seed = int(torch.randint(2**62, (), generator=generator))
        there = torch.Generator(device).manual_seed(seed)
        return torch.randint(LEVELS, shape, dtype=torch.uint8, device=device, generator=there).ge_(dropped)
    count = math.prod(shape)
    # `random_` without bounds leaves the sign bit of an int64 at 0, so its highest byte is not uniform. It draws all
    # 64 bits from `from` on where the range is the whole of int64.
    words = torch.empty(-(-count // 8), dtype=torch.int64)
    words.random_(torch.iinfo(torch.int64).min, None, generator=generator)
    mask = words.view(torch.uint8)[:count]
    # Bytes below `dropped` become 0 and all others 1, with two operations that run 64 bytes at a time.
    return mask.clamp_(dropped - 1, dropped).sub_(dropped - 1).view(shape)


def drop(values: Tensor, p: float, generator: torch.Generator) -> Tensor:
    if not p:
        return values
    mask = keep_mask(tuple(values.shape), p, generator=generator, device=values.device)
    return values * mask.to(values.dtype).mul_(1 / (1 - effective_dropout(p)))


def packed_attention(
    qkv_R3H: Tensor, packing: Packing, *, num_heads: int, dropout: float, generator: torch.Generator
) -> Tensor:
    """Attention's output (R, H) for queries, keys and values side by side (R, 3 H); dropout 0 in evaluation.

    All weights (S, h, T, T) are kept for the way back: memory grows with the square of the longest sequences.
    """
    padded_P3H = qkv_R3H.index_select(0, packing.padded_from)
    sizes = [block.num_sequences * block.num_tokens for block in packing.blocks]
    outputs = []
    with torch.autocast(qkv_R3H.device.type, enabled=False):  # small products: softmax in float32 costs nothing here
        for block, rows in zip(packing.blocks, torch.split(padded_P3H.float(), sizes), strict=True):
            apart = rows.view(block.num_sequences, block.num_tokens, 3, num_heads, -1)
            query, key, value = apart.permute(2, 0, 3, 1, 4)  # (S, h, T, d) each
            scores_ShTT = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1]) + block.bias[:, None]
            weights_ShTT = drop(torch.softmax(scores_ShTT, dim=-1), dropout, generator)
            outputs.append((weights_ShTT @ value).transpose(1, 2).reshape(len(rows), -1))
    return torch.cat(outputs).index_select(0, packing.row_to_padded)


class FeedForward(nn.Module):
    """Linear(H, F), dropout, ReLU, Linear(F, H)."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.expand, self.contract, self._dropout = nn.Linear(width, hidden), nn.Linear(hidden, width), dropout

    def forward(self, values_RH: Tensor, generator: torch.Generator) -> Tensor:
        # A GPU keeps the hidden part of all rows in its memory without loss.
        is_cpu = values_RH.device.type == "cpu"
        block_rows = max(1, BLOCK_FLOATS // self.expand.out_features) if is_cpu else len(values_RH)
        return torch.cat([self._block(block, generator) for block in torch.split(values_RH, block_rows)])

    def _block(self, values_RH: Tensor, generator: torch.Generator) -> Tensor:
        hidden_RF = self.expand(values_RH)
        if self.training and self._dropout:
            # Before the ReLU, which gives the same numbers, both work in place: of the hidden part one copy is kept.
            mask = keep_mask(tuple(hidden_RF.shape), self._dropout, generator=generator, device=hidden_RF.device)
            hidden_RF.mul_(mask).mul_(1 / (1 - effective_dropout(self._dropout)))
        output_RH: Tensor = self.contract(functional.relu_(hidden_RF))
        return output_RH
