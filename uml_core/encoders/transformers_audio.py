"""Hugging Face audio models (AST, wav2vec2 and its kin, Whisper, CLAP) with their own features and sampling rate.

A clip is decoded by the rules of `audio.decode_audio` at the model's rate, cut to max_seconds or to what the model
takes; `decode` also makes the model's features, so that it runs beside encoding. Tokens and means are taken over the
frames that hold sound, never over padding.

Shape legend: B batch, S samples, F frames, M mel bands, T tokens (T_b those of clip b), D embedding width.
"""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoFeatureExtractor

from uml_core.config import EncoderConfig
from uml_core.corpora.content import Raw
from uml_core.encoders.audio import RESAMPLING, decode_audio
from uml_core.encoders.base import Clip, Decoded, Embeddings, Encoder, TokenSequences, TorchEncoder, to_numpy
from uml_core.encoders.transformers_models import HubModel, hub_model, place_of, resolve_pooling
from uml_core.encoders.weights import from_hub, weights_revision

AST_FRAME, AST_HOP_S = 400, 0.01  # samples at 16 kHz, and seconds, of its spectrogram
# Of a feature extractor, everything that is not an array: what decides its numbers.
SCALARS = (bool, int, float, str)


def transformers_audio_encoder(config: EncoderConfig) -> Encoder:
    """Return the encoder for the model's type. Raises InputError if the model is not there or of no such type."""
    model_type = hub_model(place_of(config), "audio").model_type
    return ENCODERS.get(model_type, WaveformEncoder)(config)


class TransformersAudioEncoder(TorchEncoder):
    """What all audio models share; a subclass says how features become hidden states (B, T, D)."""

    modality = "audio"
    min_samples = 0

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

    @torch.inference_mode()
    def encode(self, rows: Sequence[Decoded]) -> Embeddings | TokenSequences:
        """Encode B clips into (B, D), or into B arrays (T_b, D) of the frames that hold sound."""
        assert self._model is not None, "load() comes before encode()"
        clips = [row for row in rows if isinstance(row, Clip)]
        output = self._forward(clips)
        if self.pooling == "projection":
            return to_numpy(torch.nn.functional.normalize(output.audio_embeds.float(), dim=-1))
        if self.pooling == "pooled":
            return to_numpy(output.pooler_output)
        frames_BTD = self._frames(output.last_hidden_state).float()
        total = frames_BTD.shape[1]
        counts = [min(total, max(1, self._num_frames(clip, total))) for clip in clips]
        if self.yields_tokens:
            return [tokens_TD[:count] for tokens_TD, count in zip(to_numpy(frames_BTD), counts, strict=True)]
        counts_B1 = torch.tensor(counts, device=frames_BTD.device).unsqueeze(1)
        mask_BT1 = (torch.arange(total, device=frames_BTD.device) < counts_B1).unsqueeze(-1)
        return to_numpy((frames_BTD * mask_BT1).sum(dim=1) / counts_B1)

    def _forward(self, clips: Sequence[Clip]) -> Any:
        features = torch.from_numpy(np.stack([clip.features for clip in clips]))
        return self._model(features.to(self._device, self._dtype))

    def _frames(self, hidden: Tensor) -> Tensor:
        """Return the last hidden state as (B, T, D) with T in time."""
        return hidden

    @abstractmethod
    def _num_frames(self, clip: Clip, total: int) -> int:
        """Return how many of the `total` frames hold sound."""

    def _build_model(self, dtype: torch.dtype) -> torch.nn.Module:
        model: torch.nn.Module = self._hub_model.load(dtype)
        return model

    @property
    def _hub_model(self) -> HubModel:
        return hub_model(place_of(self.config), "audio")

    @property
    def _hub_model_input(self) -> str:
        return str(self._extractor.model_input_names[0])

    @property
    def _extractor(self) -> Any:
        return _extractor(self._hub_model.location)

    def _weights_revision(self) -> str:
        location = self._hub_model.location
        if Path(location).is_dir():
            return weights_revision(location, setting="encoders.audio.weights")
        return str(self._hub_model.revision or "unknown")


class WaveformEncoder(TransformersAudioEncoder):
    """wav2vec2, HuBERT, WavLM, data2vec: the samples themselves, zero mean and unit variance, one frame every 20 ms.

    Models whose first layer normalises over time (`feat_extract_norm: group`, the base sizes) see padding: their clips
    share a batch only with clips of the same length. The others are padded and masked.
    """

    unit_cost = 5 * 16_000  # samples

    @property
    def pads_rows(self) -> bool:  # type: ignore[override]  # a constant of the class elsewhere
        """Whether clips of unlike length may share a batch."""
        return bool(self._hub_model.config.feat_extract_norm != "group")

    @property
    def min_samples(self) -> int:  # type: ignore[override]
        """The shortest input with one output frame."""
        config, samples = self._hub_model.config, 1
        for kernel, stride in reversed(list(zip(config.conv_kernel, config.conv_stride, strict=True))):
            samples = (samples - 1) * stride + kernel
        return int(samples)

    def cost(self, row: Decoded) -> int:
        """Length in samples."""
        assert isinstance(row, Clip)
        return row.num_samples

    def _forward(self, clips: Sequence[Clip]) -> Any:
        lengths = [clip.num_samples for clip in clips]
        values_BS = np.zeros((len(clips), max(lengths)), dtype=np.float32)
        mask_BS = np.zeros(values_BS.shape, dtype=np.int64)
        for index, clip in enumerate(clips):
            values_BS[index, : clip.num_samples] = clip.features
            mask_BS[index, : clip.num_samples] = 1
        mask = None if min(lengths) == max(lengths) else torch.from_numpy(mask_BS).to(self._device)
        return self._model(torch.from_numpy(values_BS).to(self._device, self._dtype), attention_mask=mask)

    def _num_frames(self, clip: Clip, total: int) -> int:
        model = getattr(self._model, "_orig_mod", self._model)  # below torch.compile
        return int(model._get_feat_extract_output_lengths(clip.num_samples))


class SpectrogramTransformer(TransformersAudioEncoder):
    """AST: a spectrogram of fixed length in patches, 12 in frequency for each step in time.

    `auto` is the model's own pooling of its two prefix tokens; a token is the mean over the patches of one time step.
    """

    min_samples = AST_FRAME

    @property
    def _longest_s(self) -> float:
        return (int(self._hub_model.config.max_length) - 1) * AST_HOP_S + AST_FRAME / int(self._extractor.sampling_rate)

    def _frames(self, hidden: Tensor) -> Tensor:
        patches_BTD = hidden[:, self._hub_model.kind.prefix_tokens :]
        config = self._hub_model.config
        bands = int((config.num_mel_bins - config.patch_size) // config.frequency_stride + 1)
        batch, _, width = patches_BTD.shape
        return patches_BTD.reshape(batch, bands, -1, width).mean(dim=1)

    def _num_frames(self, clip: Clip, total: int) -> int:
        config = self._hub_model.config
        frames = 1 + (clip.num_samples - AST_FRAME) // round(AST_HOP_S * int(self._extractor.sampling_rate))
        return 1 + int(max(0, frames - config.patch_size) // config.time_stride)


class WhisperAudioEncoder(TransformersAudioEncoder):
    """The encoder of Whisper: 30 s of log-mel frames, padded with silence as in training; one token every 20 ms."""

    @property
    def _longest_s(self) -> float:
        return float(self._extractor.chunk_length)

    def _build_model(self, dtype: torch.dtype) -> torch.nn.Module:
        model: torch.nn.Module = self._hub_model.load(dtype).get_encoder()
        return model

    def _num_frames(self, clip: Clip, total: int) -> int:
        return math.ceil(clip.num_samples / (2 * int(self._extractor.hop_length)))


class ClapAudioEncoder(TransformersAudioEncoder):
    """CLAP's audio tower: 10 s, shorter clips repeated; `auto` is its projection into the space shared with text.

    Longer clips would be cropped at random by its extractor; here they are cut, so that a clip has one embedding.
    """

    @property
    def _longest_s(self) -> float:
        return float(self._extractor.max_length_s)

    def _forward(self, clips: Sequence[Clip]) -> Any:
        features = torch.from_numpy(np.stack([clip.features for clip in clips])).to(self._device, self._dtype)
        return self._model(features, is_longer=torch.zeros(len(clips), 1, dtype=torch.bool, device=self._device))

    def _frames(self, hidden: Tensor) -> Tensor:
        return hidden.mean(dim=2).transpose(1, 2)  # (B, D, frequencies, T)

    def _num_frames(self, clip: Clip, total: int) -> int:
        share = clip.num_samples / (int(self._extractor.sampling_rate) * self._longest_s)
        return math.ceil(share * total)


ENCODERS: dict[str, type[TransformersAudioEncoder]] = {
    "audio-spectrogram-transformer": SpectrogramTransformer,
    "whisper": WhisperAudioEncoder,
    "clap_audio_model": ClapAudioEncoder,
}


@functools.lru_cache(maxsize=8)
def _extractor(location: str) -> Any:
    return from_hub(AutoFeatureExtractor, location, setting="encoders.audio")
