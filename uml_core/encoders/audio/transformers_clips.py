"""What Hugging Face's audio models share: from a sound file to features, and from hidden states to embeddings.

A clip is decoded by the rules of `audio.decode_audio` at the model's rate, cut to max_seconds or to what the model
takes; `decode` also makes the model's features, so that it runs beside encoding. Tokens and means are taken over the
frames that hold sound, never over padding.

For training, a clip is one array of the shape of all others: its features, with zeros up to the window that clips are
cut to, and its number of samples behind the last of them along the last axis.

Shape legend: B batch, S samples, T tokens (T_b those of clip b), D embedding width.
"""

from __future__ import annotations

import functools
import io
import math
import re
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor
from transformers import AutoFeatureExtractor

from uml_core.corpora.content import Raw
from uml_core.encoders.audio.packaged_audio import RESAMPLING, decode_audio
from uml_core.encoders.base import Clip, Decoded, Embeddings, TokenSequences, to_numpy
from uml_core.encoders.trainable import Arrays, TrainableEncoder
from uml_core.encoders.transformers_models import HubEncoder, resolve_pooling
from uml_core.encoders.weights import from_hub

# Of a feature extractor, everything that is not an array: what decides its numbers.
SCALARS = (bool, int, float, str)
EXAMPLE_S = 0.5  # of the noise that is encoded to see which layers are called


class TransformersAudioEncoder(HubEncoder, TrainableEncoder):
    """What all audio models share; a subclass says how features become hidden states (B, T, D).

    In training, dropout and layer drop are the model's own. Its masking of time and bands is off: numpy draws it, from
    no seed of ours.
    """

    modality = "audio"
    noun = "clip"
    eval_rows = 8  # a layer's output of a clip is large: 20 MB a second of wav2vec2's first
    min_samples = 0
    block_names = r"(.*\.)?layers\.\d+"  # of parameters, up to where the name of their block ends
    before_blocks: tuple[str, ...] = ()  # beginnings of names: run before the blocks, though listed behind them
    after_blocks: tuple[str, ...] = ()  # the other way round
    untrained: tuple[str, ...] = ()

    @property
    def pooling(self) -> str:
        """mean, pooled (the model's own), projection or tokens."""
        return resolve_pooling(self.config, self._hub_model.kind, modality="audio", allowed=("mean", "tokens"))

    @property
    def dim(self) -> int:
        """Width of an embedding or a frame, as config.json says."""
        return self._hub_model.width(self.pooling)

    @property
    def max_seconds(self) -> float:
        """Length a clip is cut to: the setting's, or the model's where that is less."""
        return min(self.config.max_seconds, self._longest_s)

    @property
    def _longest_s(self) -> float:
        return math.inf

    def identity(self) -> dict[str, Any]:
        """Return name, weights' revision, decoding rules, features and pooling."""
        features = {key: value for key, value in self._extractor.to_dict().items() if isinstance(value, SCALARS)}
        return {
            "source": self.config.source,
            "name": self.config.name,
            "weights": self._weights_revision(),
            "decoding": {"max_seconds": self.max_seconds, "resampling": f"soxr {RESAMPLING}"},
            "features": features,
            "pooling": self.pooling,
        }

    def decode(self, raw: Raw) -> Decoded:
        """Return the clip's features as the model's own extractor makes them, and its number of samples."""
        assert isinstance(raw, bytes)
        rate = int(self._extractor.sampling_rate)
        clip_S = decode_audio(raw, sample_rate=rate, max_seconds=self.max_seconds, min_samples=self.min_samples)
        batch = self._extractor(clip_S, sampling_rate=rate, return_tensors="np")
        features = np.asarray(batch[self._hub_model_input][0], dtype=np.float32)
        return Clip(features, len(clip_S))

    def array_of(self, raw: Raw) -> Arrays:
        """Return the clip's features up to the window, and its number of samples behind the last of them: float32."""
        clip = self.decode(raw)
        assert isinstance(clip, Clip)
        features = self._up_to_window(clip.features)
        return np.concatenate([features, np.full((*features.shape[:-1], 1), clip.num_samples, np.float32)], axis=-1)

    def on_device(self, array_B: Arrays, device: torch.device) -> Tensor:
        """Return B clips as a batch on a device, in float32."""
        return torch.from_numpy(array_B).to(device)

    def features(self, batch: Tensor) -> Tensor:
        """Return the pooled features (B, D) of B clips of any lengths, as `array_of` packs them."""
        if not len(batch):  # more ranks than samples; most models refuse it
            return batch.new_zeros(0, self.dim)
        return self._features(batch, lengths_of(batch))

    def _features(self, batch: Tensor, lengths: list[int]) -> Tensor:
        return self._pooled(batch[..., :-1].contiguous(), lengths)

    @torch.inference_mode()
    def encode(self, rows: Sequence[Decoded]) -> Embeddings | TokenSequences:
        """Encode B clips into (B, D), or into B arrays (T_b, D) of the frames that hold sound."""
        assert self._model is not None, "load() comes before encode()"
        clips = [row for row in rows if isinstance(row, Clip)]
        inputs, lengths = self._stacked(clips).to(self._device), [clip.num_samples for clip in clips]
        if not self.yields_tokens:
            return to_numpy(self._pooled(inputs, lengths))
        frames_BTD = self._frames(self._forward(inputs, lengths).last_hidden_state)
        counts = self._counts(lengths, frames_BTD.shape[1])
        return [tokens_TD[:count] for tokens_TD, count in zip(to_numpy(frames_BTD), counts, strict=True)]

    def _pooled(self, inputs: Tensor, lengths: Sequence[int]) -> Tensor:
        """Return the embeddings (B, D) of stacked features, given each clip's number of samples."""
        output = self._forward(inputs, lengths)
        if self.pooling == "projection":
            return torch.nn.functional.normalize(output.audio_embeds.float(), dim=-1)
        if self.pooling == "pooled":
            pooled: Tensor = output.pooler_output
            return pooled
        frames_BTD = self._frames(output.last_hidden_state).float()
        total = frames_BTD.shape[1]
        counts_B1 = torch.tensor(self._counts(lengths, total), device=frames_BTD.device).unsqueeze(1)
        mask_BT1 = (torch.arange(total, device=frames_BTD.device) < counts_B1).unsqueeze(-1)
        return (frames_BTD * mask_BT1).sum(dim=1) / counts_B1

    def _counts(self, lengths: Sequence[int], total: int) -> list[int]:
        """Return how many of each clip's `total` frames hold sound, at least one."""
        return [min(total, max(1, self._num_frames(length, total))) for length in lengths]

    def _stacked(self, clips: Sequence[Clip]) -> Tensor:
        return torch.from_numpy(np.stack([clip.features for clip in clips]))

    def _up_to_window(self, features: Arrays) -> Arrays:
        return features  # a spectrogram, which is as long for every clip

    def _forward(self, inputs: Tensor, lengths: Sequence[int]) -> Any:
        return self._model(inputs.to(self._dtype))

    def _frames(self, hidden: Tensor) -> Tensor:
        """Return the last hidden state as (B, T, D) with T in time."""
        return hidden

    @abstractmethod
    def _num_frames(self, num_samples: int, total: int) -> int:
        """Return how many of a clip's `total` frames hold sound."""

    def example(self) -> Arrays:
        """Return half a second of noise."""
        file, rate = io.BytesIO(), int(self._extractor.sampling_rate)
        noise_S = np.random.default_rng(0).normal(0, 0.1, round(EXAMPLE_S * rate))
        soundfile.write(file, noise_S, rate, format="WAV")
        return self.array_of(file.getvalue())

    def load_trainable(self, *, device: str = "cpu") -> None:
        """Load the weights for training, without the model's own masking."""
        super().load_trainable(device=device)
        module: Any = self.module
        module.config.apply_spec_augment = False
        if getattr(module, "adapter", None) is not None:
            module.adapter.layerdrop = 0.0  # drawn by numpy as well

    def block_depths(self) -> dict[str, int]:
        """Return the block of every parameter by name, in the order in which they run."""
        names = [name for name, _ in self.module.named_parameters()]
        found = {name: re.match(self.block_names, name) for name in names}
        blocks = list(dict.fromkeys(match.group() for match in found.values() if match))
        depths, depth = {}, 0
        for name in names:
            match = found[name]
            depth = depth if match is None else 1 + blocks.index(match.group())
            depths[name] = depth
        special = {self.before_blocks: 0, self.after_blocks: len(blocks), self.untrained: -1}
        return depths | {name: at for start, at in special.items() for name in names if name.startswith(start)}

    @property
    def _hub_model_input(self) -> str:
        return str(self._extractor.model_input_names[0])

    @property
    def _extractor(self) -> Any:
        return _extractor(self._hub_model.location)


def lengths_of(batch: Tensor) -> list[int]:
    """Return the number of samples of each clip of a batch, as `array_of` packs them."""
    return [round(length) for length in batch.flatten(1)[:, -1].tolist()]


@functools.lru_cache(maxsize=8)
def _extractor(location: str) -> Any:
    return from_hub(AutoFeatureExtractor, location, setting="encoders.audio")
