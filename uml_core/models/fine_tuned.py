"""The target's image encoder under the shared head, trained together; other corpora come as embeddings.

    logits_target = s · W_head (W encoder(picture))     the rest is `SharedHeadModel`

Shape legend: B batch, H height, W width, D embedding width, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn import functional

from uml_core.config import Experiment
from uml_core.encoders.image import PixelEncoder
from uml_core.errors import InputError
from uml_core.models.shared_head import SharedHeadModel

BACKBONE, HEADS = "backbone.", "heads."  # how the two parts' weights are named


class FineTunedModel(nn.Module):
    """An encoder with loaded weights, and the shared head. Blocks that are not trained stay in eval mode."""

    def __init__(self, experiment: Experiment, encoder: PixelEncoder, heads: SharedHeadModel) -> None:
        super().__init__()
        self._encoder, self._target, self._normalize = encoder, experiment.target, experiment.model.normalize
        self.backbone, self.heads = encoder.module, heads
        self.depths = block_depths(self.backbone)
        first = first_trained_depth(experiment, self.depths)
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(self.depths[name] >= first)

    def forward(self, batches: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the logits (B, C) of each corpus: of embeddings (B, D), of the target from pixels (B, 3, H, W)."""
        return {
            corpus: self.heads.logits(corpus, self.encode(values) if corpus == self._target else values)
            for corpus, values in batches.items()
        }

    def encode(self, pixels_B3HW: Tensor) -> Tensor:
        """Return the target's embeddings (B, D) from pixels (B, 3, H, W) on the scale 0 to 255."""
        features_BD = self._encoder.features(self._encoder.normalised(pixels_B3HW.clone())).float()
        return functional.normalize(features_BD, dim=-1) if self._normalize else features_BD

    def train(self, mode: bool = True) -> FineTunedModel:
        """Set the mode; blocks without a trained parameter stay in eval mode, and keep their running statistics."""
        super().train(mode)
        for module in self.backbone.modules():
            parameters = list(module.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()
        return self

    def learning_rate_scales(self, experiment: Experiment) -> dict[str, float]:
        """Return the factor on optim.lr of every backbone parameter: backbone_lr / lr · layer_decay ^ blocks above."""
        optim = experiment.optim
        top = max(self.depths.values())
        return {
            BACKBONE + name: optim.backbone_lr / optim.lr * optim.layer_decay ** (top - depth)
            for name, depth in self.depths.items()
        }


def first_trained_depth(experiment: Experiment, depths: Mapping[str, int]) -> int:
    """Return the depth from which on blocks are trained. Raises InputError for more blocks than there are."""
    wanted = experiment.model.trained_blocks
    if wanted is None:
        return 0
    top = max(depths.values())
    if wanted > top:
        raise InputError(
            f"model.trained_blocks is {wanted}, and the encoder has {top} blocks above its first layer; give fewer, "
            "or set model.backbone=finetune"
        )
    return top - wanted + 1


def block_depths(module: nn.Module) -> dict[str, int]:
    """Return the block of every parameter, by name: 0 before the first block; what comes after the last is of it.

    timm's models say themselves what a block is. Of others it is an entry of the longest list of modules.
    """
    group_matcher: Any = getattr(module, "group_matcher", None)
    if group_matcher is not None:
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
