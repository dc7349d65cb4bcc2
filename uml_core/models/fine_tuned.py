"""The target's encoder under the shared head, trained together; other corpora come as embeddings or, where their text
encoder is trained as well, as token ids.

    logits_target = s · W_head (W encoder(picture or clip))     the rest is `SharedHeadModel`

Drop-path (stochastic depth): timm and transformers hold a module named drop_path in every residual branch, an identity
where the rate is 0. Those are replaced; weights and their names stay as they are. Compiled steps (train.compile) give
the same results up to rounding, random numbers included: dropout draws from torch's generator in either form.

Shape legend: B batch, H height, W width, T tokens, D embedding width, C classes; a leading 2 is token ids and mask.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from itertools import groupby
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from uml_core.config import Experiment
from uml_core.encoders.text.sentence_encoders import TransformersTextEncoder
from uml_core.encoders.torch_encoder import TrainableEncoder
from uml_core.errors import InputError, first_line
from uml_core.models.shared_head import SharedHeadModel

logger = logging.getLogger(__name__)

BACKBONE, TEXTS = "backbone.", "text_backbones."  # how the encoders' weights are named
DROP_PATH = re.compile(r"(.*\.)?drop_path\d*")  # in every residual branch; timm's transformers have two in a block

Function = Callable[[Tensor], Tensor]


class FineTunedModel(nn.Module):
    """Encoders with loaded weights, and the shared head. Blocks that are not trained stay in eval mode.

    With adapters (model.backbone lora) the state holds these and the head: weights that stay as loaded are not in it.
    """

    def __init__(
        self,
        experiment: Experiment,
        encoder: TrainableEncoder,
        heads: SharedHeadModel,
        text_encoders: Mapping[str, TransformersTextEncoder] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self._encoder, self._target, self._normalize = encoder, experiment.target, experiment.model.normalize
        self._text_encoders = dict(text_encoders)
        self.has_adapters = experiment.model.backbone == "lora"
        if self.has_adapters:
            from uml_core.models.low_rank import add_adapters, leave_loaded_weights_out  # peft takes a second

            add_adapters(experiment, {experiment.target: encoder, **text_encoders})
        self.backbone: nn.Module = encoder.module
        self.heads = heads
        self.text_backbones = nn.ModuleDict({corpus: text.module for corpus, text in text_encoders.items()})
        own_depths = encoder.block_depths()
        self.depths = block_depths(self.backbone) if own_depths is None else own_depths
        self.text_depths = {corpus: block_depths(module) for corpus, module in self.text_backbones.items()}
        if self.has_adapters:
            leave_loaded_weights_out(self, (BACKBONE, TEXTS))
        else:
            set_trained(self.backbone, self.depths, experiment)
            for corpus, module in self.text_backbones.items():
                set_trained(module, self.text_depths[corpus], experiment)
        if experiment.model.drop_path:
            set_drop_path(self.backbone, experiment.model.drop_path)
        self._compiled = Compiled(encoder.features) if experiment.train.compile else None

    def forward(self, batches: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The logits (B, C) of each corpus: of embeddings (B, D), tokens (2, B, T) or what the target's is."""
        return {corpus: self.heads.logits(corpus, self._embedding(corpus, value)) for corpus, value in batches.items()}

    def _embedding(self, corpus: str, value: Tensor) -> Tensor:
        if corpus == self._target:
            return self.encode(value)
        if corpus not in self._text_encoders:
            return value
        num_rows = value.shape[1]
        # More ranks, or parts, than samples: one token stands in for none, so that the encoder runs on every rank (DDP
        # and FSDP wait for it) and gets a gradient, of zeros.
        tokens_2BT = value if num_rows else torch.stack([value.new_zeros(1, 1), value.new_ones(1, 1)])
        features_BD = self._text_encoders[corpus].features(tokens_2BT).float()[:num_rows]
        return functional.normalize(features_BD, dim=-1) if self._normalize else features_BD

    def encode(self, raw: Tensor) -> Tensor:
        """The target's embeddings (B, D) from pixels (B, 3, H, W) on the scale 0 to 255, or packed clips."""
        features_BD = self.features(raw)
        return functional.normalize(features_BD, dim=-1) if self._normalize else features_BD

    def features(self, raw: Tensor) -> Tensor:
        """The target's embeddings (B, D) as the encoder gives them, at any length."""
        # What is measured, exported and served is the encoder as it is: only steps are compiled.
        features = self._compiled if self._compiled and self.training else self._encoder.features
        return features(self._encoder.normalised(raw.clone())).float()

    def train(self, mode: bool = True) -> FineTunedModel:
        """Set the mode; blocks without a trained parameter stay in eval mode, and keep their running statistics."""
        super().train(mode)
        for module in (*self.backbone.modules(), *self.text_backbones.modules()):
            parameters = list(module.parameters())
            # A state with adapters alone holds no running statistics: these stay as loaded, whatever else there is.
            has_state = bool(parameters) or (self.has_adapters and next(module.buffers(), None) is not None)
            if has_state and not any(parameter.requires_grad for parameter in parameters):
                module.eval()
        return self

    def learning_rate_scales(self, experiment: Experiment) -> dict[str, float]:
        """The factor on optim.lr of encoders' parameters: their rate / lr · layer_decay ^ blocks above."""
        optim = experiment.optim
        rate = optim.lora_lr if self.has_adapters else optim.backbone_lr
        named = {BACKBONE: self.depths, **{f"{TEXTS}{name}.": depths for name, depths in self.text_depths.items()}}
        return {
            prefix + name: rate / optim.lr * optim.layer_decay ** (max(depths.values()) - depth)
            for prefix, depths in named.items()
            for name, depth in depths.items()
        }

    @property
    def is_compiled(self) -> bool:
        """Whether steps run the encoder compiled; False, too, where that has failed."""
        return self._compiled is not None and self._compiled.is_compiled

    def encoder_weights(self) -> dict[str, Tensor]:
        """The weights of the target's encoder under its own names, adapters merged into them."""
        if not self.has_adapters:
            return self.backbone.state_dict()
        from uml_core.models.low_rank import merged_weights

        return merged_weights(self.backbone)


def set_trained(module: nn.Module, depths: Mapping[str, int], experiment: Experiment) -> None:
    """Let an encoder's trained blocks have gradients, and no others. Raises InputError for more blocks than it has."""
    wanted, top = experiment.model.trained_blocks, max(depths.values())
    if wanted is not None and wanted > top:
        raise InputError(
            f"model.trained_blocks is {wanted}, and the encoder has {top} blocks above its first layer; give fewer, "
            "or set model.backbone=finetune"
        )
    first = 0 if wanted is None else top - wanted + 1
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(depths[name] >= first)


def block_depths(module: nn.Module) -> dict[str, int]:
    """The block of every parameter, by name: 0 before the first block; what comes after the last is of it.

    timm's models say themselves what a block is. Of others it is an entry of the longest list of modules.
    """
    group_matcher: Any = getattr(module, "group_matcher", None)
    if group_matcher is not None:
        from timm.models import group_parameters  # only timm's models get here, and its import takes seconds

        depths: dict[str, int] = group_parameters(module, group_matcher(), reverse=True)
        return depths
    lists = {name: part for name, part in module.named_modules() if isinstance(part, nn.ModuleList | nn.Sequential)}
    longest = max(lists, key=lambda name: (len(lists[name]), -name.count(".")), default="")
    num_blocks, found, depths = len(lists[longest]) if lists else 0, False, {}
    for name, _ in module.named_parameters():
        if lists and name.startswith(f"{longest}."):
            depths[name], found = int(name.removeprefix(f"{longest}.").split(".")[0]) + 1, True
        else:
            depths[name] = num_blocks if found else 0
    return depths


def set_drop_path(module: nn.Module, rate: float) -> None:
    """Give every residual branch its rate: 0 in the first block, rising by equal steps to `rate` in the last.

    Raises:
        InputError: the encoder has no such branches.
    """
    names = [name for name, _ in module.named_modules() if DROP_PATH.fullmatch(name)]
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


class Compiled:
    """A function that is compiled at its first call. It holds no weights: names in a model's state stay as they are."""

    def __init__(self, function: Function) -> None:
        self._plain = function
        # fallback_random: drawn by the kernels of the uncompiled function, not by the compiler's own generator.
        self._compiled: Function | None = torch.compile(function, options={"fallback_random": True})

    @property
    def is_compiled(self) -> bool:
        """Whether no compilation has failed."""
        return self._compiled is not None

    def __call__(self, value: Tensor) -> Tensor:
        """What the function gives. Where the compiler fails, a warning says why, and it is not asked again."""
        if self._compiled is None:
            return self._plain(value)
        try:
            return self._compiled(value)
        except RuntimeError as error:  # as the compiler's are; an error of the function itself is raised again below
            self._compiled = None
            logger.warning("train.compile: the encoder is trained uncompiled, because %s", first_line(error))
        return self._plain(value)
