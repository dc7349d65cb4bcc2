"""Multi-head self-attention over packed sequences, block by block, with dropout on the attention weights.

    out_s = dropout(softmax(q_s k_sᵀ / √d + bias)) v_s     for every sequence s and head

One autograd function for all blocks of all sequences: a graph node a layer instead of some ten a block. It keeps the
weights (N, T, T) for the way back, so memory grows with the square of the longest sequences (`max_tokens` bounds them).

Shape legend: R rows of the packed batch, P rows with padding, H width, N sequences × heads of a block, T tokens,
d width of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from uml_core.models.sequence.dropout import effective_dropout, keep_mask
from uml_core.models.sequence.packing import Block, Packing


def packed_attention(
    qkv_R3H: Tensor, packing: Packing, *, num_heads: int, dropout: float, generator: torch.Generator
) -> Tensor:
    """Return attention's output (R, H) for queries, keys and values side by side (R, 3 H); dropout 0 in evaluation."""
    with torch.autocast(qkv_R3H.device.type, enabled=False):  # small products: softmax in float32 costs nothing here
        attended_RH: Tensor = _PackedAttention.apply(qkv_R3H.float(), packing, num_heads, dropout, generator)
    return attended_RH


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv_R3H: Tensor, packing: Packing, num_heads: int, dropout: float, generator: torch.Generator
    ) -> Tensor:
        padded = qkv_R3H.detach().index_select(0, packing.padded_from)
        outputs, kept = [], []
        for block, rows in _blocks(padded, packing):
            query, key, value = _heads(rows, block, num_heads, parts=3)
            bias = block.bias if len(block.bias) == 1 else block.bias.repeat_interleave(num_heads, dim=0)
            scale = 1 / math.sqrt(query.shape[-1])
            scores_NTT = torch.baddbmm(bias.to(query.dtype), query, key.transpose(1, 2), alpha=scale)
            weights_NTT = torch.softmax(scores_NTT, dim=-1)
            mask = None
            dropped_NTT = weights_NTT
            if dropout:
                mask = keep_mask(tuple(weights_NTT.shape), dropout, generator=generator, device=weights_NTT.device)
                dropped_NTT = mask.to(weights_NTT.dtype).mul_(weights_NTT)
            outputs.append(_rows(torch.bmm(dropped_NTT, value), block, num_heads))
            kept.append((query, key, value, weights_NTT, mask))
        ctx.packing, ctx.num_heads, ctx.kept = packing, num_heads, kept
        ctx.rescale = 1 / (1 - effective_dropout(dropout))
        return torch.cat(outputs).index_select(0, packing.row_to_padded).mul_(ctx.rescale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RH: Tensor) -> tuple[Tensor, None, None, None, None]:
        packing, num_heads = ctx.packing, ctx.num_heads
        padded = grad_RH.new_zeros(len(packing.padded_from), grad_RH.shape[1])
        padded.index_copy_(0, packing.row_to_padded, grad_RH * ctx.rescale)
        gradients = []
        for (block, rows), (query, key, value, weights_NTT, mask) in zip(
            _blocks(padded, packing), ctx.kept, strict=True
        ):
            (grad_NTd,) = _heads(rows, block, num_heads, parts=1)
            grad_weights_NTT = torch.bmm(grad_NTd, value.transpose(1, 2))
            dropped_NTT = weights_NTT
            if mask is not None:
                keep_NTT = mask.to(weights_NTT.dtype)
                grad_weights_NTT.mul_(keep_NTT)
                dropped_NTT = keep_NTT.mul_(weights_NTT)
            grad_value = torch.bmm(dropped_NTT.transpose(1, 2), grad_NTd)
            grad_scores = torch._softmax_backward_data(grad_weights_NTT, weights_NTT, -1, weights_NTT.dtype)
            grad_scores.mul_(1 / math.sqrt(query.shape[-1]))
            grads = (torch.bmm(grad_scores, key), torch.bmm(grad_scores.transpose(1, 2), query), grad_value)
            gradients.append(torch.cat([_rows(grad, block, num_heads) for grad in grads], dim=1))
        return torch.cat(gradients).index_select(0, packing.row_to_padded), None, None, None, None


def _blocks(padded: Tensor, packing: Packing) -> list[tuple[Block, Tensor]]:
    """Return each block with its rows (S T, ·)."""
    sizes = [block.num_sequences * block.num_tokens for block in packing.blocks]
    return list(zip(packing.blocks, torch.split(padded, sizes), strict=True))


def _heads(rows: Tensor, block: Block, num_heads: int, *, parts: int) -> tuple[Tensor, ...]:
    """Return rows (S T, parts H) as `parts` tensors of (N, T, d)."""
    shape = (block.num_sequences, block.num_tokens, parts, num_heads, -1)
    apart = rows.view(shape).permute(2, 0, 3, 1, 4)
    return tuple(apart.reshape(parts, -1, *apart.shape[3:]).unbind(0))


def _rows(values_NTd: Tensor, block: Block, num_heads: int) -> Tensor:
    """Return (N, T, d) as rows (S T, H)."""
    apart = values_NTd.view(block.num_sequences, num_heads, block.num_tokens, -1)
    return apart.transpose(1, 2).reshape(block.num_sequences * block.num_tokens, -1)
