"""Which tensor of a text model goes where, and why the others do not: the trunks, the table, and the copying.

Trunks that can start from a text model are timm's plain ViTs and the self-supervised transformer. Source block i starts
our block i, for as many blocks as both have (or model.transfer.blocks). Width, heads and MLP must be equal; only the
depth may differ. Norms go by what reads them, so a sub-layer of ours computes of the same input what the source's did;
in a trunk of the same order of norms, and without copying anything else, so does a block.

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

import torch
from torch import Tensor, nn

from uml_core.config import SequenceModelConfig, TransferConfig
from uml_core.errors import InputError
from uml_core.models.seeding import generator_of
from uml_core.models.sequence.trunk import SharedTrunk

NONE, COPIED = "-", "copied"
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
class SourceModel(BlockKind):
    """A text model's blocks: the parts of each by name (qkv.weight, mlp_reads.bias, ...), and what else it holds."""

    name: str
    model_type: str
    blocks: tuple[Mapping[str, Piece], ...]
    shapes: Mapping[str, tuple[int, ...]]  # of all its tensors


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


@dataclass(frozen=True)
class Line:
    """One tensor: its name at the source, its name here, our shape, and what becomes of it."""

    source: str
    target: str
    shape: tuple[int, ...]
    outcome: str  # copied, or why not


@dataclass(frozen=True)
class TransferPlan:
    """The table, the values by our parameters' names, and what is not the same in the two trunks."""

    lines: tuple[Line, ...]
    values: Mapping[str, Tensor]
    notes: tuple[str, ...]

    def apply(self, module: nn.Module, config: TransferConfig, *, seed: int) -> tuple[nn.Parameter, ...]:
        """Copy the values into a module's parameters as `config.control` says; returns these parameters.

        Control shuffled permutes the entries of every tensor: the same values, without what they were trained to do.
        Control scratch leaves the parameters as they are.
        """
        parameters = tuple(module.get_parameter(name) for name in self.values)
        if config.control == "scratch":
            return parameters
        with torch.no_grad():
            for parameter, (name, value) in zip(parameters, self.values.items(), strict=True):
                if config.control == "shuffled":
                    order = torch.randperm(value.numel(), generator=generator_of(seed, "transfer", name))
                    value = value.reshape(-1)[order].reshape(value.shape)
                parameter.copy_(value)
        return parameters

    def table(self) -> str:
        """The table in Markdown, the notes above it."""
        rows = [
            f"| {line.source} | {line.target} | {' × '.join(map(str, line.shape))} | {line.outcome} |"
            for line in self.lines
        ]
        header = ["| source tensor | our tensor | shape | |", "|---|---|---|---|"]
        return "\n".join([*(f"{note}\n" for note in self.notes), *header, *rows])


def plan_transfer(source: SourceModel, trunk: Trunk, config: TransferConfig) -> TransferPlan:
    """Which tensors are copied, and which are not.

    Raises:
        InputError: width, heads or MLP differ, or more blocks are asked for than there are.
    """
    same_mlp = _family(source.activation) == _family(trunk.activation)
    _check_shapes(source, trunk, with_mlp=same_mlp)
    both = min(len(source.blocks), len(trunk.blocks))
    depth = config.blocks or both
    if depth > both:
        raise InputError(
            f"model.transfer.blocks is {depth}; '{source.name}' has {len(source.blocks)} blocks and {trunk.what} "
            f"{len(trunk.blocks)}: give at most {both}"
        )
    other_mlp = f"skipped: the source's MLP was trained with {source.activation}, ours has {trunk.activation}"
    lines: list[Line] = []
    values: dict[str, Tensor] = {}
    used: set[str] = set()
    for pieces, names in zip(source.blocks[:depth], trunk.blocks[:depth], strict=True):
        for part, name in names.items():
            piece = pieces[part]
            is_skipped = part.startswith(("mlp_in", "mlp_out")) and not same_mlp
            lines.append(Line(piece.label, name, tuple(piece.value.shape), other_mlp if is_skipped else COPIED))
            used.update(piece.names)
            if not is_skipped:
                values[name] = piece.value
    unread = [
        Line(name, NONE, shape, "skipped: nothing of ours reads it")
        for name, shape in source.shapes.items()
        if name not in used
    ]
    left = [name for block in trunk.blocks[depth:] for name in block.values()] + list(trunk.own)
    lines += [*unread, *(Line(NONE, name, (), "stays as it is") for name in left)]
    return TransferPlan(tuple(lines), values, _notes(source, trunk, depth, len(values)))


def _check_shapes(source: SourceModel, trunk: Trunk, *, with_mlp: bool) -> None:
    ours, theirs = trunk.shape, source.shape
    if (ours.width, ours.heads) == (theirs.width, theirs.heads) and (ours.hidden == theirs.hidden or not with_mlp):
        return
    is_vit = not trunk.post_norm
    fit = f"; of that shape is {FITTING[theirs]}" if is_vit and theirs in FITTING else ""
    own = "" if is_vit else "; set sequence_model.width, heads and feedforward"
    raise InputError(
        f"{SETTING} '{source.name}' ({source.model_type}) has {theirs}, and {trunk.what} has {ours}; all three must be "
        f"equal, only the number of blocks may differ{fit}{own}"
    )


def _notes(source: SourceModel, trunk: Trunk, depth: int, num_copied: int) -> tuple[str, ...]:
    """What is copied, in one line, and each thing in which the two trunks differ."""
    order = {True: "after", False: "before"}
    notes = [f"{num_copied} tensors of {depth} blocks go from {source.name} ({source.model_type}) to {trunk.what}."]
    if source.post_norm != trunk.post_norm:
        notes.append(
            f"The source normalises {order[source.post_norm]} each sub-layer, ours {order[trunk.post_norm]} it: each "
            "norm of ours gets the weights of the norm whose output the same sub-layer read at the source. Sub-layers "
            "compute the same of the same input; the sum around them is not normalised alike."
        )
    if source.causal != trunk.causal:
        sight = {True: "only tokens before it", False: "all tokens"}
        notes.append(f"At the source a token sees {sight[source.causal]}, in ours {sight[trunk.causal]}.")
    if source.activation != trunk.activation and _family(source.activation) == _family(trunk.activation):
        notes.append(f"The source's MLP has {source.activation}, ours {trunk.activation}: close, not equal.")
    if source.norm_eps != trunk.norm_eps:
        notes.append(f"Norms add {trunk.norm_eps:g} to the variance, the source's {source.norm_eps:g}: not copied.")
    return tuple(notes)


def _family(activation: str) -> str:
    return "gelu" if "gelu" in activation else activation
