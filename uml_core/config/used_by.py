"""Settings that an experiment changes and its own training does not use: `train` warns of them before it starts.

Not refused: one file has the settings of several backbones, for the arms of a sweep or a key on the command line.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uml_core.config.experiment import Experiment

AUGMENTATION = ("pictures.augment", "pictures.min_crop")
PICTURES = ("pictures.keep", "pictures.memory_gib", *AUGMENTATION)
ENCODER_RATES = ("optim.backbone_lr", "optim.layer_decay")
# What a line search has no use for; it takes all rows at every step.
OF_ADAMW = ("optim.lr", "optim.schedule", "optim.warmup_steps", "optim.warmup_lr", "train.batch_size")


def unused_settings(experiment: Experiment) -> list[str]:
    """Return one line for every setting with another value than its default that training does not use."""
    lines = []
    for keys, why, otherwise in _unused(experiment):
        for key in keys:
            section, name = key.split(".")
            settings = getattr(experiment, section)
            value = getattr(settings, name)
            if value != type(settings).model_fields[name].default:
                lines.append(f"{key} is {value} and not used with {why}; {otherwise}, or remove it")
    return lines


def _unused(experiment: Experiment) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """Yield keys that are not used, why, and what would use them."""
    backbone = experiment.model.backbone
    if backbone == "frozen":
        why = "model.backbone frozen, where no encoder is trained"
        yield (*ENCODER_RATES, *PICTURES), why, "set model.backbone=finetune"
    elif backbone == "lora":
        yield ("optim.backbone_lr",), "model.backbone lora, whose rate is optim.lora_lr", "set that"
    if backbone != "lora":
        yield ("optim.lora_lr",), f"model.backbone {backbone}, which has no adapters", "set model.backbone=lora"
    if backbone != "frozen" and experiment.corpora[experiment.target].modality == "audio":
        yield AUGMENTATION, f"model.backbone {backbone} of sounds, which are not augmented", "set a target of pictures"
    if experiment.optim.name == "lbfgs":
        yield OF_ADAMW, "optim.name lbfgs, a line search over all rows", "set optim.name=adamw"
