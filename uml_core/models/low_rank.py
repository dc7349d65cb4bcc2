"""Low-rank adapters (LoRA, arXiv 2106.09685) on encoders with loaded weights, by peft: the only room that imports it.

    y = W x + alpha / rank · B (A x)     W stays as it was loaded, A is drawn by the seed, B starts at 0

In: encoders. Out: the same modules with adapters in place, of which a state holds the adapters alone, and the merged
weights W + alpha / rank · B A, which need neither this nor peft.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from uml_core.config import Experiment
from uml_core.encoders.text.sentence_encoders import TransformersTextEncoder
from uml_core.encoders.torch_encoder import TrainableEncoder
from uml_core.errors import InputError, listing, nearest
from uml_core.models.seeding import generator_of

ADAPTER = "default"  # peft's name for the only one
OF_ADAPTER = re.compile(r"(^|\.)lora_[A-Z]\.")  # in the names of its weights
# Exactly these: a subclass may do more to its weights than W x (standardise them), and W + B A would not be its merger.
LINEAR: tuple[type[nn.Module], ...] = (nn.Linear, Conv1D)

TrainedEncoder = TrainableEncoder | TransformersTextEncoder


def add_adapters(experiment: Experiment, encoders: Mapping[str, TrainedEncoder]) -> None:
    """Put adapters beside layers of encoders with loaded weights, by corpus; nothing else of them is trained.

    Raises:
        InputError: an encoder has no layer that adapters fit, or none of a name in `model.lora.targets`.
    """
    layers = {corpus: adaptable_layers(encoder) for corpus, encoder in encoders.items()}
    targets = experiment.model.lora.targets
    _refuse_unknown(targets or (), layers)
    for corpus, encoder in encoders.items():
        own, module = layers[corpus], encoder.module
        named = [name for name in own if any(_is_called(name, target) for target in targets or ())]
        chosen = [name for name in own if _in_a_block(module, name)] if targets is None else named
        if not chosen:
            raise InputError(_nothing_to_adapt(module, own, targets))
        _inject(experiment, corpus, module, [(name, own[name]) for name in chosen])


def adaptable_layers(encoder: TrainedEncoder) -> dict[str, nn.Module]:
    """The linear layers and pointwise convolutions that encoding one input calls, by name.

    A layer whose weights are read past its call (a fused attention, a tied matrix) would leave its adapter out.
    """
    fitting = {name: part for name, part in encoder.module.named_modules() if _fits(part)}
    called: set[nn.Module] = set()
    hooks = [part.register_forward_hook(lambda part, *_: called.add(part)) for part in fitting.values()]
    try:
        with torch.no_grad():
            _encode_something(encoder)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: part for name, part in fitting.items() if part in called}


@torch.no_grad()
def merged_weights(module: nn.Module) -> dict[str, Tensor]:
    """An encoder's weights under the names it had without adapters, each adapter added to its layer's."""
    adapted: dict[str, Any] = {name: part for name, part in module.named_modules() if isinstance(part, LoraLayer)}
    own = {name: value for name, value in module.state_dict().items() if not OF_ADAPTER.search(name)}
    merged = {name.replace(".base_layer.", "."): value for name, value in own.items()}
    for name, layer in adapted.items():
        merged[f"{name}.weight"] = merged[f"{name}.weight"] + layer.get_delta_weight(ADAPTER)
    return merged


def leave_loaded_weights_out(model: nn.Module, encoders: tuple[str, ...]) -> None:
    """Let a model's state hold, below some prefixes, adapters alone: the rest is loaded wherever the model is built.

    `state_dict()` lacks it, and `load_state_dict()` does not miss it.
    """

    def left_out(name: str) -> bool:
        return name.startswith(encoders) and not OF_ADAPTER.search(name)

    def drop(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
        for name in [name for name in state if left_out(name.removeprefix(prefix))]:
            del state[name]

    def forgive(module: nn.Module, incompatible: Any) -> None:
        incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if not left_out(name)]

    model.register_state_dict_post_hook(drop)  # type: ignore[no-untyped-call]
    model.register_load_state_dict_post_hook(forgive)  # type: ignore[no-untyped-call]


def _fits(part: nn.Module) -> bool:
    if type(part) is nn.Conv2d:
        return part.kernel_size == (1, 1) and part.groups == 1
    return type(part) in LINEAR


def _is_called(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _in_a_block(module: nn.Module, name: str) -> bool:
    """Whether a layer is inside an entry of a list of modules: not a stem's, a pooler's or a last projection."""
    while name := name.rpartition(".")[0]:
        if isinstance(module.get_submodule(name), nn.ModuleList | nn.Sequential):
            return True
    return False


def _encode_something(encoder: TrainedEncoder) -> None:
    """Encode a blank picture, some noise, or one letter; random numbers and the module's mode are left as they are."""
    device = next(encoder.module.parameters()).device
    if isinstance(encoder, TransformersTextEncoder):
        encoder.features(encoder.padded([encoder.decode("a")]).to(device))
        return
    batch = encoder.on_device(encoder.example()[None], device).to(torch.float32)
    encoder.features(encoder.normalised(batch))


def _inject(experiment: Experiment, corpus: str, module: nn.Module, chosen: Sequence[tuple[str, nn.Module]]) -> None:
    settings = experiment.model.lora
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.scale * settings.rank,  # type: ignore[arg-type]  # a float does as well
        lora_dropout=settings.dropout,
        target_modules="|".join(re.escape(name) for name, _ in chosen),  # as text, the whole name has to match
        fan_in_fan_out=isinstance(chosen[0][1], Conv1D),
    )
    with torch.random.fork_rng(devices=[]):  # torch's own random state stays as it was
        torch.manual_seed(generator_of(experiment.seed, "adapters", corpus).initial_seed())
        inject_adapter_in_model(config, module, ADAPTER)


def _refuse_unknown(targets: Sequence[str], layers: Mapping[str, Mapping[str, nn.Module]]) -> None:
    for target in targets:
        names = [name for own in layers.values() for name in own]
        if not any(_is_called(name, target) for name in names):
            ends = _ends(names)
            raise InputError(
                f"model.lora.targets names '{target}', and no linear layer or pointwise convolution that the trained "
                f"encoders use is called so; there are {listing(ends, limit=20)}{nearest(target, ends)}, or whole "
                f"names such as {names[0] if names else 'blocks.0.attn.qkv'}"
            )


def _nothing_to_adapt(module: nn.Module, own: Mapping[str, nn.Module], targets: Sequence[str] | None) -> str:
    kind, found = type(module).__name__, listing(_ends(own), limit=20)
    if targets is not None:
        return (
            f"model.lora.targets names {listing(targets)}, none of them in the encoder {kind}, which has "
            f"{found or 'no layer that adapters fit'}; add one of its names"
        )
    kinds = sorted({type(part).__name__ for part in module.modules() if hasattr(part, "weight")})
    outside = f"outside of them are {found}: name some in model.lora.targets, or " if found else ""
    return (
        f"model.backbone is lora, and the encoder ({kind}) has no linear layer or pointwise convolution in its blocks, "
        f"which adapters fit (its layers are {listing(kinds)}); {outside}set model.backbone=partial"
    )


def _ends(names: Any) -> list[str]:
    """The last words of names, each once; a number keeps the word before it."""
    return list(dict.fromkeys(re.sub(r"^.*?([^.]+(\.\d+)*)$", r"\1", name) for name in names))
