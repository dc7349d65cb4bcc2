"""What a transformer block is made of, whoever's it is, and our trunks whose blocks can start from a text model's:
timm's plain ViTs, and the self-supervised transformer.

Parts are tensors in the layout of nn.Linear (outputs, inputs): qkv (queries, keys and values one above the other),
attention_out, mlp_in, mlp_out, and norms, which are named by what reads them: that is what a sub-layer was trained on.

    pre-LN  (GPT-2, ViT)       x = x + attention(attention_reads(x));   x = x + mlp(mlp_reads(x))
    post-LN (BERT, our trunk)  y = mlp_reads(x + attention(x));         x = next_reads(y + mlp(y))

So attention in block i of a post-LN model reads the norm that ends block i - 1 (in the first, the embeddings' norm).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from uml_core.config import SequenceModelConfig
from uml_core.errors import InputError
from uml_core.models.sequence.trunk import SharedTrunk

SETTING = "model.transfer.source"
KINDS = ("weight", "bias")
VIT_PARTS = {
    "attention_reads": "norm1",
    "qkv": "attn.qkv",
    "attention_out": "attn.proj",
    "mlp_reads": "norm2",
    "mlp_in": "mlp.fc1",
    "mlp_out": "mlp.fc2",
}
OWN_PARTS = {
    "qkv": "attention_in",
    "attention_out": "attention_out",
    "mlp_reads": "attention_norm",
    "mlp_in": "feed_forward.expand",
    "mlp_out": "feed_forward.contract",
    "next_reads": "feed_forward_norm",
}


@dataclass(frozen=True)
class Shape:
    """What two trunks must have in common for one's blocks to compute in the other what they computed."""

    width: int
    heads: int
    hidden: int  # of the MLP

    def __str__(self) -> str:
        return f"width {self.width}, {self.heads} heads, MLP {self.hidden}"


# timm's plain ViTs by shape, for a message that says which one would fit.
FITTING = {
    Shape(192, 3, 768): "vit_tiny_patch16_224",
    Shape(384, 6, 1536): "vit_small_patch16_224",
    Shape(384, 12, 1536): "vit_small_patch16_224 with encoders.image.heads=12",
    Shape(768, 12, 3072): "vit_base_patch16_224",
    Shape(1024, 16, 4096): "vit_large_patch16_224",
}


@dataclass(frozen=True)
class BlockKind:
    """How a transformer's blocks compute."""

    shape: Shape
    activation: str
    norm_eps: float
    post_norm: bool
    causal: bool  # a token sees those before it alone


@dataclass(frozen=True)
class Trunk(BlockKind):
    """A module's blocks: its parameters' names by part; `own` are all that no block of a text model has."""

    what: str  # for messages: the setting and what it is
    blocks: tuple[Mapping[str, str], ...]
    own: tuple[str, ...]


def vit_trunk(name: str, module: nn.Module) -> Trunk:
    """The blocks of a timm ViT. Raises InputError for any other model, or a ViT with other blocks."""
    what = f"encoders.image '{name}'"
    blocks: Any = getattr(module, "blocks", None)
    plain = isinstance(blocks, nn.Sequential | nn.ModuleList) and len(blocks) and all(map(_is_plain, blocks))
    if not plain:
        raise InputError(
            f"model.transfer needs a plain ViT of timm, with blocks of norm1, attn.qkv, attn.proj, norm2, mlp.fc1 and "
            f"mlp.fc2 alone, and {what} is none; take vit_base_patch16_224, for example"
        )
    first = blocks[0]
    return Trunk(
        what=what,
        shape=Shape(first.norm1.weight.shape[0], first.attn.num_heads, first.mlp.fc1.weight.shape[0]),
        activation=type(first.mlp.act).__name__.lower(),
        norm_eps=first.norm1.eps,
        post_norm=False,
        causal=False,
        **_named(module, [f"blocks.{index}" for index in range(len(blocks))], VIT_PARTS),
    )


def own_trunk(config: SequenceModelConfig) -> Trunk:
    return Trunk(
        what="sequence_model",
        shape=Shape(config.width, config.heads, config.feedforward),
        activation="relu",
        norm_eps=nn.LayerNorm(1).eps,
        post_norm=True,
        causal=config.task == "next_token",
        **_named(SharedTrunk(config), [f"layers.{index}" for index in range(config.layers)], OWN_PARTS),
    )


def _is_plain(block: Any) -> bool:
    """Whether a block computes x + attention(norm1(x)), then x + mlp(norm2(x)), with nothing in between."""
    modules = dict(block.named_modules())
    for part, name in VIT_PARTS.items():
        if not isinstance(modules.get(name), nn.LayerNorm if part.endswith("reads") else nn.Linear):
            return False
    between = [modules.get(name) for name in ("attn.q_norm", "attn.k_norm", "attn.norm", "mlp.norm", "ls1", "ls2")]
    if "attn.gate" in modules or not all(each is None or isinstance(each, nn.Identity) for each in between):
        return False
    width, hidden = block.norm1.weight.shape[0], block.mlp.fc1.out_features
    return bool(block.attn.qkv.out_features == 3 * width and block.mlp.fc2.in_features == hidden)


def _named(module: nn.Module, stems: list[str], parts: Mapping[str, str]) -> dict[str, Any]:
    """The blocks' parameters by part, and all parameters that are none of these."""
    known = [name for name, _ in module.named_parameters()]
    blocks = tuple(
        {
            f"{part}.{kind}": f"{stem}.{name}.{kind}"
            for part, name in parts.items()
            for kind in KINDS
            if f"{stem}.{name}.{kind}" in known
        }
        for stem in stems
    )
    taken = {name for block in blocks for name in block.values()}
    return {"blocks": blocks, "own": tuple(name for name in known if name not in taken)}
