"""The feed-forward part of a transformer layer, a block of rows at a time: its wide activations never leave the cache.

    out = (relu(x W1ᵀ + b1) ∘ mask / (1 − p)) W2ᵀ + b2

For H = 40 and F = 2048 the hidden activations are 50 times as wide as input and output: written to memory and read
again, with their dropout mask and their gradient, they cost more time than the products. Here a block of rows goes all
the way through while its hidden part stays in the core's own cache, and the way back computes it again (one product
more, of six) instead of reading it. Only the mask, a byte a unit, is kept.

Shape legend: R rows, H width, F hidden width, n rows of one block.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from uml_core.models.sequence.dropout import drop, effective_dropout, keep_mask

BLOCK_FLOATS = 2**18  # hidden units of a block: 1 MiB, half of a server core's level-2 cache


class FeedForward(nn.Module):
    """Linear(H, F), ReLU, dropout, Linear(F, H)."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.expand, self.contract, self._dropout = nn.Linear(width, hidden), nn.Linear(hidden, width), dropout

    def forward(self, values_RH: Tensor, generator: torch.Generator) -> Tensor:
        """Return the layer's output (R, H); dropout is active in training mode."""
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
        for rows in _blocks(len(values_RH), expand_FH):
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
        for rows, mask in zip(_blocks(len(grad_RH), expand_FH), ctx.masks, strict=True):
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


def _blocks(num_rows: int, expand_FH: Tensor) -> list[slice]:
    """Return the blocks of rows."""
    size = _block_rows(expand_FH)
    return [slice(size * index, min(size * (index + 1), num_rows)) for index in range(math.ceil(num_rows / size))]
