"""Hugging Face audio models (AST, wav2vec2 and its kin, Whisper, CLAP) with their own features and sampling rate.

What they share is in transformers_clips.py; here is what each type of model does with features, and which of its frames
hold sound.

Shape legend: B batch, S samples, T tokens, D embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from uml_core.config import EncoderConfig
from uml_core.encoders.audio.transformers_clips import TransformersAudioEncoder
from uml_core.encoders.base import Clip, Decoded, Encoder
from uml_core.encoders.trainable import Arrays
from uml_core.encoders.transformers_models import hub_model, place_of
from uml_core.errors import InputError

AST_FRAME, AST_HOP_S = 400, 0.01  # samples at 16 kHz, and seconds, of its spectrogram
EXACT = 2**24  # up to here float32 holds every whole number


def transformers_audio_encoder(config: EncoderConfig) -> Encoder:
    """Return the encoder for the model's type. Raises InputError if the model is not there or of no such type."""
    model_type = hub_model(place_of(config), "audio").model_type
    return ENCODERS.get(model_type, WaveformEncoder)(config)


class WaveformEncoder(TransformersAudioEncoder):
    """wav2vec2, HuBERT, WavLM, data2vec: the samples themselves, zero mean and unit variance, one frame every 20 ms.

    Models whose first layer normalises over time (`feat_extract_norm: group`, the base sizes) see padding, and so does
    data2vec with its row of positional convolutions: their clips share a batch only with clips of the same length. The
    others are padded and masked.
    """

    unit_cost = 5 * 16_000  # samples
    block_names = r"encoder\.layers\.\d+"
    untrained = ("masked_spec_embed",)  # of the masking that is off

    @property
    def pads_rows(self) -> bool:  # type: ignore[override]  # a constant of the class elsewhere
        """Whether clips of unlike length may share a batch."""
        config = self._hub_model.config
        return bool(config.model_type != "data2vec-audio" and config.feat_extract_norm != "group")

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

    def _features(self, batch: Tensor, lengths: list[int]) -> Tensor:
        """Return the features (B, D) of B clips; of models that see padding, clips of each length by themselves."""
        if self.pads_rows:
            return self._pooled(batch[:, : max(lengths)].contiguous(), lengths)
        features: dict[int, Tensor] = {}
        for length in dict.fromkeys(lengths):
            places = [place for place, other in enumerate(lengths) if other == length]
            embedding_BD = self._pooled(batch[places, :length], [length] * len(places))
            features |= dict(zip(places, embedding_BD, strict=True))
        return torch.stack([features[place] for place in range(len(lengths))])

    def _stacked(self, clips: Sequence[Clip]) -> Tensor:
        values_BS = np.zeros((len(clips), max(clip.num_samples for clip in clips)), dtype=np.float32)
        for index, clip in enumerate(clips):
            values_BS[index, : clip.num_samples] = clip.features
        return torch.from_numpy(values_BS)

    def _up_to_window(self, features: Arrays) -> Arrays:
        window = max(round(self.max_seconds * int(self._extractor.sampling_rate)), self.min_samples)
        if window > EXACT:
            raise InputError(
                f"encoders.audio.max_seconds is {self.config.max_seconds:g}; a trained encoder takes clips of up to "
                f"{EXACT // int(self._extractor.sampling_rate)} s: lower it"
            )
        return np.pad(features, (0, window - len(features)))

    def _forward(self, inputs: Tensor, lengths: Sequence[int]) -> Any:
        mask_BS = None
        if len(set(lengths)) > 1:
            ends_B1 = torch.tensor(lengths, device=inputs.device).unsqueeze(1)
            mask_BS = (torch.arange(inputs.shape[1], device=inputs.device) < ends_B1).long()
        return self._model(inputs.to(self._dtype), attention_mask=mask_BS)

    @property
    def after_blocks(self) -> tuple[str, ...]:  # type: ignore[override]
        """The norm behind the layers, in models that normalise before each of them."""
        module: Any = self.module
        return ("encoder.layer_norm.",) if "StableLayerNorm" in type(module.encoder).__name__ else ()

    def _num_frames(self, num_samples: int, total: int) -> int:
        model = getattr(self._model, "_orig_mod", self._model)  # below torch.compile
        return int(model._get_feat_extract_output_lengths(num_samples))


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

    def _num_frames(self, num_samples: int, total: int) -> int:
        config = self._hub_model.config
        frames = 1 + (num_samples - AST_FRAME) // round(AST_HOP_S * int(self._extractor.sampling_rate))
        return 1 + int(max(0, frames - config.patch_size) // config.time_stride)


class WhisperAudioEncoder(TransformersAudioEncoder):
    """The encoder of Whisper: 30 s of log-mel frames, padded with silence as in training; one token every 20 ms."""

    untrained = ("embed_positions.",)  # sines, which its authors left as they are

    @property
    def _longest_s(self) -> float:
        return float(self._extractor.chunk_length)

    def _build_model(self, dtype: torch.dtype) -> torch.nn.Module:
        model: torch.nn.Module = self._hub_model.load(dtype).get_encoder()
        return model

    def _empty_model(self) -> torch.nn.Module:
        model: torch.nn.Module = self._hub_model.empty().get_encoder()
        return model

    def _num_frames(self, num_samples: int, total: int) -> int:
        return math.ceil(num_samples / (2 * int(self._extractor.hop_length)))


class ClapAudioEncoder(TransformersAudioEncoder):
    """CLAP's audio tower: 10 s, shorter clips repeated; `auto` is its projection into the space shared with text.

    Longer clips would be cropped at random by its extractor; here they are cut, so that a clip has one embedding.
    """

    block_names = r"audio_model\.audio_encoder\.layers\.\d+\.blocks\.\d+"
    before_blocks = ("audio_model.audio_encoder.batch_norm.",)

    @property
    def _longest_s(self) -> float:
        return float(self._extractor.max_length_s)

    def _forward(self, inputs: Tensor, lengths: Sequence[int]) -> Any:
        is_longer = torch.zeros(len(inputs), 1, dtype=torch.bool, device=inputs.device)
        return self._model(inputs.to(self._dtype), is_longer=is_longer)

    def _frames(self, hidden: Tensor) -> Tensor:
        return hidden.mean(dim=2).transpose(1, 2)  # (B, D, frequencies, T)

    def _num_frames(self, num_samples: int, total: int) -> int:
        share = num_samples / (int(self._extractor.sampling_rate) * self._longest_s)
        return math.ceil(share * total)


ENCODERS: dict[str, type[TransformersAudioEncoder]] = {
    "audio-spectrogram-transformer": SpectrogramTransformer,
    "whisper": WhisperAudioEncoder,
    "clap_audio_model": ClapAudioEncoder,
}
