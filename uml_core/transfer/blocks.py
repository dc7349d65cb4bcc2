"""What a transformer block is made of, whoever's it is: the parts by name, the shapes, a text model's blocks.

Parts are tensors in the layout of nn.Linear (outputs, inputs): qkv (queries, keys and values one above the other),
attention_out, mlp_in, mlp_out, and norms, which are named by what reads them: that is what a sub-layer was trained on.

    pre-LN  (GPT-2, ViT)       x = x + attention(attention_reads(x));   x = x + mlp(mlp_reads(x))
    post-LN (BERT, our trunk)  y = mlp_reads(x + attention(x));         x = next_reads(y + mlp(y))

So attention in block i of a post-LN model reads the norm that ends block i - 1 (in the first, the embeddings' norm).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

SETTING = "model.transfer.source"
KINDS = ("weight", "bias")


@dataclass(frozen=True)
class Piece:
    """One tensor of a block in our layout, and the source's tensors it is made of."""

    names: tuple[str, ...]
    value: Tensor
    transposed: bool = False

    @property
    def label(self) -> str:
        """The names in short: attention.self.query+key+value.weight."""
        stem, _, kind = self.names[0].rpartition(".")
        others = [name.rpartition(".")[0].rpartition(".")[2] for name in self.names[1:]]
        return f"{'+'.join([stem, *others])}.{kind}{' transposed' if self.transposed else ''}"


@dataclass(frozen=True)
class Shape:
    """What two trunks must have in common for one's blocks to compute in the other what they computed."""

    width: int
    heads: int
    hidden: int  # of the MLP

    def __str__(self) -> str:
        return f"width {self.width}, {self.heads} heads, MLP {self.hidden}"


@dataclass(frozen=True)
class SourceModel:
    """A text model's blocks: the parts of each by name (qkv.weight, mlp_reads.bias, ...), and what else it holds."""

    name: str
    model_type: str
    shape: Shape
    activation: str
    norm_eps: float
    post_norm: bool
    causal: bool
    blocks: tuple[Mapping[str, Piece], ...]
    shapes: Mapping[str, tuple[int, ...]]  # of all its tensors
