"""The shared transformer: post-norm layers over packed sequences of any corpora, and positions.

As `nn.TransformerEncoder` with `norm_first=False` (docs/method.md, Self-supervised), and equal to it to float tolerance
without dropout. All corpora of a step go through together, in one pass, and no row is padding.

Shape legend: R rows of the packed batch, H width, h heads, d width of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from uml_core.config import SequenceModelConfig
from uml_core.models.sequence.kernels import FeedForward, drop, packed_attention
from uml_core.models.sequence.packing import Packing

LONGEST_WAVE = 10_000.0  # of sinusoidal and rotary positions, as published


class SharedTrunk(nn.Module):
    """The layers, with positions added before them or turned into their queries and keys (rotary)."""

    def __init__(self, config: SequenceModelConfig) -> None:
        super().__init__()
        self._positions = config.positions
        self._num_heads = config.heads
        self.layers = nn.ModuleList([TrunkLayer(config) for _ in range(config.layers)])
        if config.positions == "learnable":
            self.position_embedding = nn.Parameter(torch.zeros(config.max_tokens, config.width))

    def forward(self, values_RH: Tensor, packing: Packing, generator: torch.Generator) -> Tensor:
        rotation = None
        if self._positions == "learnable":
            values_RH = values_RH + self.position_embedding[packing.positions]
        elif self._positions == "sinusoidal":
            values_RH = values_RH + sinusoids(packing.positions, values_RH.shape[1])
        elif self._positions == "rotary":
            rotation = sinusoids(packing.positions, values_RH.shape[1] // self._num_heads)
        for layer in self.layers:
            values_RH = layer(values_RH, packing, generator, rotation)
        return values_RH


class TrunkLayer(nn.Module):
    """One post-norm layer: x = norm(x + attention(x)); x = norm(x + feed_forward(x)); dropout on both branches."""

    def __init__(self, config: SequenceModelConfig) -> None:
        super().__init__()
        self._num_heads, self._dropout = config.heads, config.dropout
        self.attention_in = nn.Linear(config.width, 3 * config.width)
        self.attention_out = nn.Linear(config.width, config.width)
        self.feed_forward = FeedForward(config.width, config.feedforward, config.dropout)
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(config.width), nn.LayerNorm(config.width)

    def forward(
        self, values_RH: Tensor, packing: Packing, generator: torch.Generator, rotation: Tensor | None
    ) -> Tensor:
        dropout = self._dropout if self.training else 0.0
        qkv_R3H = self.attention_in(values_RH)
        if rotation is not None:
            qkv_R3H = _rotated(qkv_R3H, rotation, self._num_heads)
        attended_RH = packed_attention(
            qkv_R3H, packing, num_heads=self._num_heads, dropout=dropout, generator=generator
        )
        branch_RH = self.attention_out(attended_RH)
        values_RH = self.attention_norm(values_RH + (drop(branch_RH, dropout, generator) if dropout else branch_RH))
        branch_RH = self.feed_forward(values_RH, generator)
        output_RH: Tensor = self.feed_forward_norm(
            values_RH + (drop(branch_RH, dropout, generator) if dropout else branch_RH)
        )
        return output_RH


def sinusoids(position_R: Tensor, width: int) -> Tensor:
    """Sines and cosines of each position (R, width): the first half sines, the second half cosines."""
    half = -(-width // 2)
    frequency = torch.exp(torch.arange(half, device=position_R.device) * (-math.log(LONGEST_WAVE) / half))
    angle = position_R[:, None].float() * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)[:, :width]


def _rotated(qkv_R3H: Tensor, rotation: Tensor, num_heads: int) -> Tensor:
    """Turn queries and keys by their positions' angles (rotary embedding); values stay."""
    query_key, value_RH = torch.split(qkv_R3H, [2 * qkv_R3H.shape[1] // 3, qkv_R3H.shape[1] // 3], dim=1)
    first, second = query_key.reshape(len(qkv_R3H), 2 * num_heads, 2, -1).unbind(2)
    sine, cosine = rotation[:, None].chunk(2, dim=-1)
    turned = torch.stack([first * cosine - second * sine, first * sine + second * cosine], dim=2)
    return torch.cat([turned.reshape(len(qkv_R3H), -1), value_RH], dim=1)
