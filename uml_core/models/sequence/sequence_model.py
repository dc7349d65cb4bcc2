"""Self-supervised UML: projections of every corpus around one shared transformer (docs/method.md, Self-supervised).

    prediction_k = W_out,k · trunk(W_in,k tokens_k + positions)

Continuous tokens go in and come out through linear maps, discrete ones through an embedding and logits. Everything
between is shared by all corpora, and one pass computes the tokens of all of them.

Shape legend: R rows (tokens of all sequences of a corpus), D token width, H shared width, S sequences, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from uml_core.config import Experiment, SequenceModelConfig
from uml_core.data.sequence_data import SequenceData
from uml_core.models.seeding import initialise
from uml_core.models.sequence.packing import Lengths, Packing, masked_mean, pack
from uml_core.models.sequence.trunk import SharedTrunk


@dataclass(frozen=True)
class TokenSpace:
    """What a corpus's tokens are: vectors of width D, or whole numbers below a vocabulary."""

    dim: int
    vocabulary: int | None = None


@dataclass(frozen=True)
class TrunkInputs:
    """Standardised tokens of each corpus, (R_k, D_k) or (R_k,), in the order of the packing.

    `hidden` marks rows (R_k, 1) whose tokens the model must not see; `scored` are the rows to predict from (None: all).
    """

    tokens: Mapping[str, Tensor]
    packing: Packing
    generator: torch.Generator
    hidden: Mapping[str, Tensor]
    scored: Mapping[str, Tensor]


class SequenceModel(nn.Module):
    """Input and output maps of each corpus, standardisation of its tokens, and the shared trunk."""

    def __init__(self, spaces: Mapping[str, TokenSpace], config: SequenceModelConfig) -> None:
        super().__init__()
        self.config, self.spaces = config, dict(spaces)
        self.causal = config.task == "next_token"
        self.inputs = nn.ModuleDict({corpus: _input_map(space, config.width) for corpus, space in spaces.items()})
        self.outputs = nn.ModuleDict(
            {corpus: nn.Linear(config.width, space.vocabulary or space.dim) for corpus, space in spaces.items()}
        )
        self.trunk = SharedTrunk(config)
        if config.task == "masked_token":
            self.hidden_token = nn.Parameter(torch.zeros(1, config.width))
        for corpus, space in spaces.items():
            self.register_buffer(f"mean_{corpus}", torch.zeros(space.dim))
            self.register_buffer(f"deviation_{corpus}", torch.ones(space.dim))

    def standardized(self, corpus: str, tokens_RD: Tensor) -> Tensor:
        """A corpus's tokens as the model reads them: (R, D) standardised, or (R,) whole numbers."""
        if isinstance(self.inputs[corpus], nn.Embedding):
            return tokens_RD[:, 0].long()
        mean_D, deviation_D = getattr(self, f"mean_{corpus}"), getattr(self, f"deviation_{corpus}")
        standardized_RD: Tensor = (tokens_RD - mean_D).div_(deviation_D)
        return standardized_RD

    def forward(self, batch: TrunkInputs) -> dict[str, Tensor]:
        """The prediction of each corpus at its scored rows: (M, D), or logits (M, V)."""
        corpora = list(batch.tokens)
        projected = [self._projected(corpus, batch) for corpus in corpora]
        output_RH = self.trunk(torch.cat(projected), batch.packing, batch.generator)
        parts = output_RH.split([len(part) for part in projected])
        return {
            corpus: self.outputs[corpus](part if corpus not in batch.scored else part[batch.scored[corpus]])
            for corpus, part in zip(corpora, parts, strict=True)
        }

    def features(self, corpus: str, tokens_RD: Tensor, lengths: Lengths) -> Tensor:
        """The mean of the trunk's output over each sequence's own tokens (S, H); call it in evaluation mode."""
        packing = pack(lengths, causal=self.causal, device=tokens_RD.device)
        projected_RH = self.inputs[corpus](self.standardized(corpus, tokens_RD))
        return masked_mean(self.trunk(projected_RH, packing, torch.Generator()), packing)

    def _projected(self, corpus: str, batch: TrunkInputs) -> Tensor:
        projected_RH: Tensor = self.inputs[corpus](batch.tokens[corpus])
        if corpus in batch.hidden:
            projected_RH = torch.where(batch.hidden[corpus], self.hidden_token.to(projected_RH.dtype), projected_RH)
        return projected_RH


def build_sequence_model(experiment: Experiment, data: SequenceData) -> SequenceModel:
    """Build the model of an experiment, initialised by its seed, with the statistics of the train tokens."""
    spaces = {corpus: TokenSpace(rows.dim, rows.table.vocabulary) for corpus, rows in data.train.items()}
    model = SequenceModel(spaces, experiment.sequence_model)
    initialise(model, experiment.seed)
    for corpus, rows in data.train.items():
        if experiment.sequence_model.standardize and rows.table.vocabulary is None:
            mean_D, deviation_D = rows.statistics()
            getattr(model, f"mean_{corpus}").copy_(torch.from_numpy(mean_D))
            getattr(model, f"deviation_{corpus}").copy_(torch.from_numpy(deviation_D))
    return model


def _input_map(space: TokenSpace, width: int) -> nn.Module:
    return nn.Linear(space.dim, width) if space.vocabulary is None else nn.Embedding(space.vocabulary, width)
