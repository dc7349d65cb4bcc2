"""Drop-path (stochastic depth) for an encoder with loaded weights: in training, samples skip residual branches.

timm and transformers hold a module named drop_path in every residual branch, an identity where the rate is 0. Those are
replaced; weights and their names stay as they are. What is drawn comes from torch's generator, as dropout is.
"""

from __future__ import annotations

import re
from itertools import groupby

from torch import nn

from uml_core.errors import InputError

NAME = re.compile(r"(.*\.)?drop_path\d*")  # timm's transformers have two in a block


def set_drop_path(module: nn.Module, rate: float) -> None:
    """Give every residual branch its rate: 0 in the first block, rising by equal steps to `rate` in the last.

    Raises:
        InputError: the encoder has no such branches.
    """
    names = [name for name, _ in module.named_modules() if NAME.fullmatch(name)]
    blocks = [list(group) for _, group in groupby(names, key=lambda name: name.rpartition(".")[0])]
    if not blocks:
        raise InputError(
            f"model.drop_path is {rate:g}, and the encoder ({type(module).__name__}) names no residual branch that "
            "could be dropped; set model.drop_path=0"
        )
    from timm.layers import DropPath  # takes seconds, and few runs drop branches

    for index, branches in enumerate(blocks):
        for name in branches:
            parent, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(parent), attribute, DropPath(rate * index / max(1, len(blocks) - 1)))
