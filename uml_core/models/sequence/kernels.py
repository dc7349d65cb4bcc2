"""What the trunk's layers spend their time on, written for a CPU's caches: dropout, attention, feed-forward.

    out_s = dropout(softmax(q_s k_sᵀ / √d + bias)) v_s     for every sequence s and head
    out = dropout(relu(x W1ᵀ + b1)) W2ᵀ + b2               row by row

Dropout: torch draws a Bernoulli number a unit (7 to 10 ns each, measured), which is more time than the products of the
layer it regularises. Here one byte of a random 64-bit integer decides one unit, at a tenth of the cost. Eight bits make
p a multiple of 1/256: .1 becomes 26/256. The scale 1 / (1 − p) uses that p, so the expected value is kept exactly.

Attention: one autograd function for all blocks of all sequences, a graph node a layer instead of some ten a block. It
keeps the weights (N, T, T) for the way back: memory grows with the square of the longest sequences (`max_tokens`).

Feed-forward: for H = 40 and F = 2048 the hidden activations are 50 times as wide as input and output. Written to memory
and read again, with mask and gradient, they cost more time than the products. A block of rows goes all the way through
while its hidden part stays in the core's own cache, and the way back computes it again (one product more, of six).
Only the mask, a byte a unit, is kept.

Shape legend: R rows of the packed batch, P rows with padding, H width, F hidden width, n rows of a block of rows,
N sequences × heads of a block, T tokens, d width of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from uml_core.models.sequence.packing import Block, Packing

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
    mask = keep_mask(tuple(values.shape), p, generator=generator, device=values.device)
    return values * mask.to(values.dtype).mul_(1 / (1 - effective_dropout(p)))


def packed_attention(
    qkv_R3H: Tensor, packing: Packing, *, num_heads: int, dropout: float, generator: torch.Generator
) -> Tensor:
    """Attention's output (R, H) for queries, keys and values side by side (R, 3 H); dropout 0 in evaluation."""
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
            # One pass over the layer's largest tensor; written out with public operations it is three.
            grad_scores = torch._softmax_backward_data(grad_weights_NTT, weights_NTT, -1, weights_NTT.dtype)
            grad_scores.mul_(1 / math.sqrt(query.shape[-1]))
            grads = (torch.bmm(grad_scores, key), torch.bmm(grad_scores.transpose(1, 2), query), grad_value)
            gradients.append(torch.cat([_rows(grad, block, num_heads) for grad in grads], dim=1))
        return torch.cat(gradients).index_select(0, packing.row_to_padded), None, None, None, None


def _blocks(padded: Tensor, packing: Packing) -> list[tuple[Block, Tensor]]:
    sizes = [block.num_sequences * block.num_tokens for block in packing.blocks]
    return list(zip(packing.blocks, torch.split(padded, sizes), strict=True))


def _heads(rows: Tensor, block: Block, num_heads: int, *, parts: int) -> tuple[Tensor, ...]:
    """Rows (S T, parts H) as `parts` tensors of (N, T, d)."""
    shape = (block.num_sequences, block.num_tokens, parts, num_heads, -1)
    apart = rows.view(shape).permute(2, 0, 3, 1, 4)
    return tuple(apart.reshape(parts, -1, *apart.shape[3:]).unbind(0))


def _rows(values_NTd: Tensor, block: Block, num_heads: int) -> Tensor:
    """(N, T, d) as rows (S T, H)."""
    apart = values_NTd.view(block.num_sequences, num_heads, block.num_tokens, -1)
    return apart.transpose(1, 2).reshape(block.num_sequences * block.num_tokens, -1)


class FeedForward(nn.Module):
    """Linear(H, F), ReLU, dropout, Linear(F, H)."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.expand, self.contract, self._dropout = nn.Linear(width, hidden), nn.Linear(hidden, width), dropout

    def forward(self, values_RH: Tensor, generator: torch.Generator) -> Tensor:
        dropout = self._dropout if self.training else 0.0
        if values_RH.device.type != "cpu":  # a GPU keeps the hidden part in memory without loss
            hidden_RF = functional.relu(self.expand(values_RH))
            return self.contract(drop(hidden_RF, dropout, generator) if dropout else hidden_RF)  # type: ignore[no-any-return]
        weights = (self.expand.weight, self.expand.bias, self.contract.weight, self.contract.bias)
        with torch.autocast("cpu", enabled=False):
            output_RH: Tensor = _BlockedFeedForward.apply(values_RH.float(), *weights, dropout, generator)
        return output_RH


class _BlockedFeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values_RH: Tensor,
        expand_FH: Tensor,
        expand_bias_F: Tensor,
        contract_HF: Tensor,
        contract_bias_H: Tensor,
        dropout: float,
        generator: torch.Generator,
    ) -> Tensor:
        values_RH = values_RH.detach()
        ones = values_RH.new_ones(len(values_RH), 1)
        # The bias is one more input that is always 1: no pass over the hidden part to add it.
        input_RI = torch.cat([values_RH, ones], dim=1)
        expand_IF = torch.cat([expand_FH.detach(), expand_bias_F.detach()[:, None]], dim=1).t().contiguous()
        contract_FH = contract_HF.detach().t().contiguous().mul_(1 / (1 - effective_dropout(dropout)))
        output_RH = torch.empty_like(values_RH)
        scratch = values_RH.new_empty(2, _block_rows(expand_FH), len(expand_FH))
        masks: list[Tensor | None] = []
        for rows in _row_blocks(len(values_RH), expand_FH):
            count = rows.stop - rows.start
            hidden_nF = torch.mm(input_RI[rows], expand_IF, out=scratch[0, :count]).relu_()
            mask = None
            if dropout:
                mask = keep_mask(tuple(hidden_nF.shape), dropout, generator=generator, device=hidden_nF.device)
                hidden_nF.mul_(scratch[1, :count].copy_(mask))  # a product of unlike types would allocate this copy
            masks.append(mask)
            torch.addmm(contract_bias_H.detach(), hidden_nF, contract_FH, out=output_RH[rows])
        ctx.save_for_backward(input_RI, expand_FH, expand_IF, contract_HF)
        ctx.masks, ctx.rescale = masks, 1 / (1 - effective_dropout(dropout))
        return output_RH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RH: Tensor) -> tuple[Tensor | None, ...]:
        input_RI, expand_FH, expand_IF, contract_HF = ctx.saved_tensors
        scaled_HF = contract_HF * ctx.rescale
        grad_input_RH = torch.empty_like(grad_RH)
        grad_expand_IF, grad_contract_HF = torch.zeros_like(expand_IF), torch.zeros_like(contract_HF)
        scratch = grad_RH.new_empty(2, _block_rows(expand_FH), len(expand_FH))
        for rows, mask in zip(_row_blocks(len(grad_RH), expand_FH), ctx.masks, strict=True):
            count = rows.stop - rows.start
            hidden_nF = torch.mm(input_RI[rows], expand_IF, out=scratch[0, :count]).relu_()
            if mask is not None:
                hidden_nF.mul_(scratch[1, :count].copy_(mask))
            grad_contract_HF.addmm_(grad_RH[rows].t(), hidden_nF)
            grad_hidden_nF = torch.mm(grad_RH[rows], scaled_HF, out=scratch[1, :count])
            # A unit that was negative or dropped is 0 now: both masks at once.
            torch.ops.aten.threshold_backward.grad_input(grad_hidden_nF, hidden_nF, 0, grad_input=grad_hidden_nF)
            grad_expand_IF.addmm_(input_RI[rows].t(), grad_hidden_nF)
            torch.mm(grad_hidden_nF, expand_FH, out=grad_input_RH[rows])
        grad_expand_FI = grad_expand_IF.t()
        return (
            grad_input_RH,
            grad_expand_FI[:, :-1].contiguous(),
            grad_expand_FI[:, -1].contiguous(),
            grad_contract_HF.mul_(ctx.rescale),
            grad_RH.sum(dim=0),
            None,
            None,
        )


def _block_rows(expand_FH: Tensor) -> int:
    return max(1, BLOCK_FLOATS // len(expand_FH))


def _row_blocks(num_rows: int, expand_FH: Tensor) -> list[slice]:
    size = _block_rows(expand_FH)
    return [slice(size * index, min(size * (index + 1), num_rows)) for index in range(math.ceil(num_rows / size))]
