"""Which tensor of a text model goes where, and why the others do not: the table, and the copying.

Source block i starts our block i, for as many blocks as both have (or model.transfer.blocks). Width, heads and MLP must
be equal; only the depth may differ. Norms go by what reads them (`trunks`), so a sub-layer of ours computes of the same
input what the source's did; in a trunk of the same order of norms, and without copying anything else, so does a block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from uml_core.config import TransferConfig
from uml_core.errors import InputError
from uml_core.models.seeding import generator_of
from uml_core.transfer.trunks import FITTING, SETTING, Trunk

if TYPE_CHECKING:
    from uml_core.transfer.sources import SourceModel  # transformers with it, which takes seconds

NONE, COPIED = "-", "copied"


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
                parameter.copy_(value if config.control == "none" else _shuffled(value, seed, name))
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
    depth = _depth(source, trunk, config)
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


def _depth(source: SourceModel, trunk: Trunk, config: TransferConfig) -> int:
    both = min(len(source.blocks), len(trunk.blocks))
    if config.blocks is not None and config.blocks > both:
        raise InputError(
            f"model.transfer.blocks is {config.blocks}; '{source.name}' has {len(source.blocks)} blocks and "
            f"{trunk.what} {len(trunk.blocks)}: give at most {both}"
        )
    return config.blocks or both


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


def _shuffled(value: Tensor, seed: int, name: str) -> Tensor:
    order = torch.randperm(value.numel(), generator=generator_of(seed, "transfer", name))
    return value.reshape(-1)[order].reshape(value.shape)
