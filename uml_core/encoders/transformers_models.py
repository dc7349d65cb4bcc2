"""The one table of Hugging Face model types: which class loads each, and how it is pooled by default.

A model's type is `model_type` in its config.json. Whatever is not here can be used through `source: module`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uml_core.config import EncoderConfig
from uml_core.encoders.lazy import Lazy
from uml_core.encoders.torch_encoder import TorchEncoder
from uml_core.encoders.weights import fetched, from_hub, weights_revision, whole_from_hub
from uml_core.errors import InputError, nearest

if TYPE_CHECKING:
    import huggingface_hub
    import torch
    import transformers
else:
    huggingface_hub, torch, transformers = Lazy("huggingface_hub"), Lazy("torch"), Lazy("transformers")


@dataclass(frozen=True)
class ModelType:
    """How one model type is loaded and read.

    `pooling` is what `pooling: auto` means: cls, mean, pooled (the model's own pooled output) or projection (its
    projection into the space it shares with another modality, at unit length).
    """

    loader: str  # a class of transformers
    pooling: str
    prefix_tokens: int = 0  # images: tokens before the patches (CLS, distillation), registers apart
    part: str | None = None  # the part of a two-tower config that is this modality's


_CLS = ModelType("AutoModel", "cls")
_MEAN = ModelType("AutoModel", "mean")
_CLIP_IMAGE = ModelType("CLIPVisionModelWithProjection", "projection", prefix_tokens=1, part="vision_config")
_SIGLIP_IMAGE = ModelType("SiglipVisionModel", "projection", part="vision_config")
_CLIP_TEXT = ModelType("CLIPTextModelWithProjection", "projection", part="text_config")
_CLAP_AUDIO = ModelType("ClapAudioModelWithProjection", "projection", part="audio_config")

# BERT-like models have a first token that is trained to stand for the sentence; of decoders the mean over all
# tokens is taken (docs/method.md, Supervised).
_TEXT_CLS = (
    *("albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet"),
    *("roberta", "xlm-roberta"),
)
_TEXT_MEAN = (
    *("bloom", "cohere", "falcon", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neo", "gpt_neox", "gptj", "granite"),
    *("llama", "mistral", "mixtral", "olmo", "olmo2", "opt", "phi", "phi3", "qwen2", "qwen3", "smollm3", "stablelm"),
    "starcoder2",
)

MODEL_TYPES: Mapping[str, Mapping[str, ModelType]] = {
    "image": {
        "vit": ModelType("ViTModel", "cls", prefix_tokens=1),
        "deit": ModelType("DeiTModel", "cls", prefix_tokens=2),
        "dinov2": ModelType("Dinov2Model", "cls", prefix_tokens=1),
        "dinov2_with_registers": ModelType("Dinov2WithRegistersModel", "cls", prefix_tokens=1),
        "dinov3_vit": ModelType("DINOv3ViTModel", "cls", prefix_tokens=1),
        "clip": _CLIP_IMAGE,
        "clip_vision_model": _CLIP_IMAGE,
        "siglip": _SIGLIP_IMAGE,
        "siglip_vision_model": _SIGLIP_IMAGE,
        "convnext": ModelType("ConvNextModel", "pooled"),
        "convnextv2": ModelType("ConvNextV2Model", "pooled"),
        "resnet": ModelType("ResNetModel", "pooled"),
        "swin": ModelType("SwinModel", "pooled"),
    },
    "text": {
        **dict.fromkeys(_TEXT_CLS, _CLS),
        **dict.fromkeys(_TEXT_MEAN, _MEAN),
        "t5": ModelType("T5EncoderModel", "mean"),
        "mt5": ModelType("MT5EncoderModel", "mean"),
        "clip": _CLIP_TEXT,
        "clip_text_model": _CLIP_TEXT,
    },
    "audio": {
        "audio-spectrogram-transformer": ModelType("ASTModel", "pooled", prefix_tokens=2),
        "wav2vec2": _MEAN,
        "hubert": _MEAN,
        "wavlm": _MEAN,
        "data2vec-audio": _MEAN,
        "whisper": ModelType("WhisperModel", "mean"),
        "clap": _CLAP_AUDIO,
        "clap_audio_model": _CLAP_AUDIO,
    },
}


class HubEncoder(TorchEncoder):
    """What encoders of Hugging Face models share: the model that their settings name, and what is read from it."""

    @property
    def location(self) -> str:
        return location_of(self.config, self.modality)

    @property
    def poolings(self) -> tuple[str, ...]:
        """What `pooling` may be set to beside auto."""
        return ("mean", "tokens")

    @property
    def auto_pooling(self) -> str:
        """What `pooling: auto` is."""
        return self._kind.pooling

    @property
    def pooling(self) -> str:
        """How embeddings are pooled. Raises InputError for what the model cannot do."""
        own, given = self.auto_pooling, self.config.pooling
        if given not in ("auto", *self.poolings):
            raise InputError(
                f"encoders.{self.modality}.pooling is '{given}'; '{self.config.name}' has auto ({own}), "
                f"{', '.join(self.poolings)}"
            )
        return own if given == "auto" else str(given)

    @property
    def dim(self) -> int:
        config = self._hub_config
        if self.pooling == "projection" and hasattr(config, "projection_dim"):
            return int(config.projection_dim)
        if hasattr(config, "patch_embeds_hidden_size"):  # CLAP: doubled at each of its stages after the first
            return int(config.patch_embeds_hidden_size * 2 ** (len(config.depths) - 1))
        if getattr(config, "add_adapter", False):  # wav2vec2 and its kin
            return int(config.output_hidden_size)
        sizes = getattr(config, "hidden_sizes", None)  # convolutional models: one a stage
        return int(sizes[-1] if sizes else config.hidden_size)

    def identity(self) -> dict[str, Any]:
        """Everything that decides the numbers; subclasses add how they decode."""
        return {
            "source": self.config.source,
            "name": self.config.name,
            "weights": self._weights_revision(),
            "pooling": self.pooling,
        }

    @property
    def _kind(self) -> ModelType:
        return hub_model(self.location, self.modality)[0]

    @property
    def _hub_config(self) -> Any:
        return hub_model(self.location, self.modality)[1]

    def _build_model(self, dtype: torch.dtype) -> torch.nn.Module:
        def is_unused(key: str) -> bool:
            # A pooling layer that only pretraining or another task used, and the mask embedding of speech pretraining.
            return ("pooler" in key and self._kind.pooling != "pooled") or "masked_spec_embed" in key

        loader, setting = getattr(transformers, self._kind.loader), f"encoders.{self.modality}"
        options = {"config": self._hub_config, "dtype": dtype, "is_unused": is_unused}
        return self._tower(whole_from_hub(loader, self.location, setting=setting, **options))

    def _empty_model(self) -> torch.nn.Module:
        loader = getattr(transformers, self._kind.loader)
        if self._kind.loader == "AutoModel":  # has no constructor
            return self._tower(loader.from_config(self._hub_config, dtype=torch.float32))
        return self._tower(loader(self._hub_config))

    def _tower(self, model: torch.nn.Module) -> torch.nn.Module:
        """The part of a whole model that encodes."""
        return model

    def _weights_revision(self) -> str:
        if Path(self.location).is_dir():
            return weights_revision(self.location, setting=f"encoders.{self.modality}.weights")
        hub_model(self.location, self.modality)  # fetches config.json, if it is not in the cache yet
        file = huggingface_hub.try_to_load_from_cache(self.location, "config.json")  # snapshots/COMMIT/config.json
        return Path(file).parent.name if isinstance(file, str) else "unknown"


@functools.lru_cache(maxsize=32)
def hub_model(location: str, modality: str) -> tuple[ModelType, Any]:
    """What config.json says: the model's type, and the config of the part that is used.

    Raises:
        InputError: it is not there, or of no supported type.
    """
    config = from_hub(transformers.AutoConfig, location, setting=f"encoders.{modality}")
    types = MODEL_TYPES[modality]
    kind = types.get(config.model_type)
    if kind is None:
        raise InputError(
            f"encoders.{modality} '{location}' is of type '{config.model_type}'; source transformers has, for "
            f"{modality}: {', '.join(sorted(types))}{nearest(config.model_type, types)}; or write one (source: module)"
        )
    part = getattr(config, kind.part, None) if kind.part else None
    if part is not None and hasattr(config, "projection_dim"):
        part.projection_dim = config.projection_dim
    return kind, config if part is None else part


def location_of(config: EncoderConfig, modality: str) -> str:
    """The local directory if one is given (of a URI a copy), else the name on the hub."""
    return fetched(config.weights, setting=f"encoders.{modality}.weights") if config.weights else config.name
