"""Hugging Face audio models (AST, wav2vec2 and its kin, Whisper, CLAP) with their own features and sampling rate.

A clip is decoded by the rules of `packaged_audio.decode_audio` at the model's rate, cut to max_seconds or to what the
model can read; `decode` also makes the model's features, so that it runs beside encoding. Tokens and means are taken
over the frames that hold sound, never over padding.

For training, a clip is one array of the shape of all others: its features, with zeros up to the window that clips are
cut to, and its number of samples behind the last of them along the last axis.

Shape legend: B batch, S samples, T tokens (T_b those of clip b), D embedding width.
"""

from __future__ import annotations

import io
import math
import re
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor, nn
from transformers import AutoFeatureExtractor

from uml_core.config import EncoderConfig
from uml_core.corpora.content import Raw
from uml_core.encoders.audio.packaged_audio import RESAMPLING, decode_audio
from uml_core.encoders.base import Clip, Decoded, Embeddings, Encoder, TokenSequences
from uml_core.encoders.torch_encoder import Arrays, TrainableEncoder, for_device, to_numpy
from uml_core.encoders.transformers_models import HubEncoder, hub_model, location_of
from uml_core.encoders.weights import from_hub_once

# Of a feature extractor, everything that is not an array: what decides its numbers.
SCALARS = (bool, int, float, str)
EXAMPLE_S = 0.5  # of the noise that is encoded to see which layers are called
AST_FRAME, AST_HOP_S = 400, 0.01  # samples at 16 kHz, and seconds, of its spectrogram


def transformers_audio_encoder(config: EncoderConfig) -> Encoder:
    """The encoder for the model's type. Raises InputError if the model is not there or of no such type."""
    model_type = hub_model(location_of(config, "audio"), "audio")[1].model_type
    return ENCODERS.get(model_type, WaveformEncoder)(config)


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
    untrained: tuple[str, ...] = ()  # parameters that stay as loaded

    @property
    def max_seconds(self) -> float:
        """Length a clip is cut to: the setting's, or the model's where that is less."""
        return min(self.config.max_seconds, self._longest_s)

    @property
    def _longest_s(self) -> float:
        return math.inf

    def identity(self) -> dict[str, Any]:
        features = {key: value for key, value in self._extractor.to_dict().items() if isinstance(value, SCALARS)}
        decoding = {"max_seconds": self.max_seconds, "resampling": f"soxr {RESAMPLING}"}
        return {**super().identity(), "decoding": decoding, "features": features}

    def decode(self, raw: Raw) -> Decoded:
        """The clip's features as the model's own extractor makes them, and its number of samples."""
        assert isinstance(raw, bytes)
        rate = int(self._extractor.sampling_rate)
        clip_S = decode_audio(raw, sample_rate=rate, max_seconds=self.max_seconds, min_samples=self.min_samples)
        batch = self._extractor(clip_S, sampling_rate=rate, return_tensors="np")
        features = np.asarray(batch[self._extractor.model_input_names[0]][0], dtype=np.float32)
        return Clip(features, len(clip_S))

    def array_of(self, raw: Raw) -> Arrays:
        """The clip's features up to the window, and its number of samples behind the last of them: float32."""
        clip = self.decode(raw)
        assert isinstance(clip, Clip)
        features = self._up_to_window(clip.features)
        return np.concatenate([features, np.full((*features.shape[:-1], 1), clip.num_samples, np.float32)], axis=-1)

    def on_device(self, array_B: Arrays, device: torch.device) -> Tensor:
        return for_device(array_B, device).to(device, non_blocking=True)

    def features(self, batch: Tensor) -> Tensor:
        """The pooled features (B, D) of B clips of any lengths, as `array_of` packs them."""
        if not len(batch):  # more ranks than samples; most models refuse it
            return batch.new_zeros(0, self.dim)
        return self._features(batch, [round(length) for length in batch.flatten(1)[:, -1].tolist()])

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
        """The embeddings (B, D) of stacked features, given each clip's number of samples."""
        output = self._forward(inputs, lengths)
        if self.pooling == "projection":
            return nn.functional.normalize(output.audio_embeds.float(), dim=-1)
        if self.pooling == "pooled":
            pooled: Tensor = output.pooler_output
            return pooled
        frames_BTD = self._frames(output.last_hidden_state).float()
        total = frames_BTD.shape[1]
        counts_B1 = torch.tensor(self._counts(lengths, total), device=frames_BTD.device).unsqueeze(1)
        mask_BT1 = (torch.arange(total, device=frames_BTD.device) < counts_B1).unsqueeze(-1)
        return (frames_BTD * mask_BT1).sum(dim=1) / counts_B1

    def _counts(self, lengths: Sequence[int], total: int) -> list[int]:
        return [min(total, max(1, self._num_frames(length, total))) for length in lengths]

    def _stacked(self, clips: Sequence[Clip]) -> Tensor:
        # Padded with zeros: waveforms differ in length, spectrograms do not.
        return nn.utils.rnn.pad_sequence([torch.from_numpy(clip.features) for clip in clips], batch_first=True)

    def _up_to_window(self, features: Arrays) -> Arrays:
        return features  # a spectrogram, which is as long for every clip

    def _forward(self, inputs: Tensor, lengths: Sequence[int]) -> Any:
        return self._model(inputs.to(self._dtype))

    def _frames(self, hidden: Tensor) -> Tensor:
        """The last hidden state as (B, T, D) with T in time."""
        return hidden

    @abstractmethod
    def _num_frames(self, num_samples: int, total: int) -> int:
        """How many of a clip's `total` frames hold sound, before it is cut to 1 ... total."""

    def example(self) -> Arrays:
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
    def _extractor(self) -> Any:
        return from_hub_once(AutoFeatureExtractor, self.location, setting="encoders.audio")


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
        config = self._hub_config
        return bool(config.model_type != "data2vec-audio" and config.feat_extract_norm != "group")

    @property
    def min_samples(self) -> int:  # type: ignore[override]
        """The shortest input with one output frame."""
        samples = 1
        for kernel, stride in reversed(self._convolutions):
            samples = (samples - 1) * stride + kernel
        return int(samples)

    def cost(self, row: Decoded) -> int:
        assert isinstance(row, Clip)
        return row.num_samples

    def _features(self, batch: Tensor, lengths: list[int]) -> Tensor:
        if self.pads_rows:
            return self._pooled(batch[:, : max(lengths)].contiguous(), lengths)
        features: dict[int, Tensor] = {}  # padding would be seen: clips of each length by themselves
        for length in dict.fromkeys(lengths):
            rows = [row for row, other in enumerate(lengths) if other == length]
            features |= dict(zip(rows, self._pooled(batch[rows, :length], [length] * len(rows)), strict=True))
        return torch.stack([features[row] for row in range(len(lengths))])

    def _up_to_window(self, features: Arrays) -> Arrays:
        window = max(round(self.max_seconds * int(self._extractor.sampling_rate)), self.min_samples)
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
        return ("encoder.layer_norm.",) if getattr(self._hub_config, "do_stable_layer_norm", False) else ()

    def _num_frames(self, num_samples: int, total: int) -> int:
        for kernel, stride in self._convolutions:
            num_samples = (num_samples - kernel) // stride + 1
        return num_samples

    @property
    def _convolutions(self) -> list[tuple[int, int]]:
        """Kernel and stride of each convolution over time, those of an adapter behind the layers among them."""
        config = self._hub_config
        convolutions = list(zip(config.conv_kernel, config.conv_stride, strict=True))
        if getattr(config, "add_adapter", False):
            # As of kernel 1, which is how transformers counts them: an adapter's convolutions are padded.
            convolutions += [(1, config.adapter_stride)] * config.num_adapter_layers
        return convolutions


class SpectrogramTransformer(TransformersAudioEncoder):
    """AST: a spectrogram of fixed length in patches, 12 in frequency for each step in time.

    `auto` is the model's own pooling of its two prefix tokens; a token is the mean over the patches of one time step.
    """

    min_samples = AST_FRAME

    @property
    def _longest_s(self) -> float:
        return (int(self._hub_config.max_length) - 1) * AST_HOP_S + AST_FRAME / int(self._extractor.sampling_rate)

    def _frames(self, hidden: Tensor) -> Tensor:
        patches_BTD = hidden[:, self._kind.prefix_tokens :]
        config = self._hub_config
        bands = int((config.num_mel_bins - config.patch_size) // config.frequency_stride + 1)
        batch, _, width = patches_BTD.shape
        return patches_BTD.reshape(batch, bands, -1, width).mean(dim=1)

    def _num_frames(self, num_samples: int, total: int) -> int:
        config = self._hub_config
        frames = 1 + (num_samples - AST_FRAME) // round(AST_HOP_S * int(self._extractor.sampling_rate))
        return 1 + int(max(0, frames - config.patch_size) // config.time_stride)


class WhisperAudioEncoder(TransformersAudioEncoder):
    """The encoder of Whisper: 30 s of log-mel frames, padded with silence as in training; one token every 20 ms."""

    untrained = ("embed_positions.",)  # sines, which its authors left as they are

    @property
    def _longest_s(self) -> float:
        return float(self._extractor.chunk_length)

    def _tower(self, model: Any) -> nn.Module:
        encoder: nn.Module = model.get_encoder()
        return encoder

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
