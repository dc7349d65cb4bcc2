"""Small, randomly initialised models of each supported kind, saved as the hub would hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ("<pad>", "<unk>", "<bos>", "<eos>", "a", "cat", "dog", "sat", "on", "the", "mat", "runs")
SIDE = 32  # pixels
VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
PATCHES = {"image_size": SIDE, "patch_size": 8}
SPEECH = {
    **VIT,
    "conv_dim": (16, 16),
    "conv_kernel": (20, 16),
    "conv_stride": (10, 16),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


def vision_model(kind: str) -> Any:
    """A vision model of a type, weights random."""
    torch.manual_seed(0)
    clip_text = hf.CLIPTextConfig(**VIT, vocab_size=len(WORDS), max_position_embeddings=12, eos_token_id=3)
    built = {
        "vit": lambda: hf.ViTModel(hf.ViTConfig(**VIT, **PATCHES)),
        "deit": lambda: hf.DeiTModel(hf.DeiTConfig(**VIT, **PATCHES)),
        "dinov2": lambda: hf.Dinov2Model(hf.Dinov2Config(**VIT, **PATCHES)),
        "dinov2_with_registers": lambda: hf.Dinov2WithRegistersModel(
            hf.Dinov2WithRegistersConfig(**VIT, **PATCHES, num_register_tokens=3)
        ),
        "dinov3_vit": lambda: hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**VIT, **PATCHES, num_register_tokens=2)),
        "clip": lambda: hf.CLIPModel(
            hf.CLIPConfig(
                vision_config=hf.CLIPVisionConfig(**VIT, **PATCHES).to_dict(),
                text_config=clip_text.to_dict(),
                projection_dim=24,
            )
        ),
        "siglip_vision_model": lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**VIT, **PATCHES)),
        "convnext": lambda: hf.ConvNextModel(hf.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])),
        "convnextv2": lambda: hf.ConvNextV2Model(
            hf.ConvNextV2Config(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])
        ),
        "resnet": lambda: hf.ResNetModel(
            hf.ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic")
        ),
        "swin": lambda: hf.SwinModel(
            hf.SwinConfig(image_size=SIDE, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4)
        ),
    }
    return built[kind]().eval()


def save_vision(directory: Path, kind: str, *, processor: Any = None) -> Any:
    """Save a vision model with its image processor; returns the model."""
    model = vision_model(kind)
    model.save_pretrained(directory)
    (processor or hf.ViTImageProcessor(size={"height": SIDE, "width": SIDE})).save_pretrained(directory)
    return model


def word_tokenizer() -> hf.PreTrainedTokenizerFast:
    """A tokenizer of whole words that puts <bos> before and <eos> behind."""
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 3)]
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<bos>", eos_token="<eos>"
    )


def save_text(directory: Path, kind: str) -> Any:
    """Save a text model with its tokenizer; returns the model."""
    torch.manual_seed(0)
    size, places = len(WORDS), {"max_position_embeddings": 64}
    built = {
        "bert": lambda: hf.BertModel(hf.BertConfig(**VIT, **places, vocab_size=size)),
        "roberta": lambda: hf.RobertaModel(hf.RobertaConfig(**VIT, **places, vocab_size=size, pad_token_id=0)),
        "gpt2": lambda: hf.GPT2Model(hf.GPT2Config(vocab_size=size, n_embd=32, n_layer=1, n_head=2)),
        "llama": lambda: hf.LlamaModel(hf.LlamaConfig(**VIT, vocab_size=size)),
        "t5": lambda: hf.T5EncoderModel(
            hf.T5Config(vocab_size=size, d_model=32, d_kv=16, d_ff=32, num_layers=2, num_heads=2)
        ),
        "clip": lambda: vision_model("clip"),
    }
    model = built[kind]().eval()
    model.save_pretrained(directory)
    word_tokenizer().save_pretrained(directory)
    return model


def save_audio(directory: Path, kind: str) -> Any:
    """Save an audio model with its feature extractor; returns the model."""
    torch.manual_seed(0)
    waveform = hf.Wav2Vec2FeatureExtractor(return_attention_mask=True)
    built: dict[str, tuple[Any, Any]] = {
        "wav2vec2": (lambda: hf.Wav2Vec2Model(hf.Wav2Vec2Config(**SPEECH, feat_extract_norm="layer")), waveform),
        "hubert": (lambda: hf.HubertModel(hf.HubertConfig(**SPEECH)), waveform),
        "wavlm": (lambda: hf.WavLMModel(hf.WavLMConfig(**SPEECH)), waveform),
        "data2vec": (lambda: hf.Data2VecAudioModel(hf.Data2VecAudioConfig(**SPEECH)), waveform),
        "whisper": (
            lambda: hf.WhisperModel(
                hf.WhisperConfig(
                    **{"vocab_size": 10, "d_model": 32, "num_mel_bins": 16, "max_source_positions": 100},
                    **{"encoder_layers": 2, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32},
                    **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_start_token_id": 1},
                    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
                )
            ),
            hf.WhisperFeatureExtractor(feature_size=16, chunk_length=2),
        ),
        "ast": (
            lambda: hf.ASTModel(hf.ASTConfig(**VIT, max_length=120, num_mel_bins=32)),
            hf.ASTFeatureExtractor(max_length=120, num_mel_bins=32),
        ),
        "clap": (
            lambda: hf.ClapModel(
                hf.ClapConfig(
                    audio_config={
                        **{"spec_size": 64, "num_mel_bins": 16, "patch_embeds_hidden_size": 16, "hidden_size": 32},
                        **{"depths": [1, 1], "num_attention_heads": [2, 2], "window_size": 4, "num_hidden_layers": 2},
                    },
                    text_config={**VIT, "vocab_size": 10},
                    projection_dim=24,
                )
            ),
            hf.ClapFeatureExtractor(
                **{"feature_size": 16, "sampling_rate": 8000, "max_length_s": 2, "hop_length": 80},
                **{"fft_window_size": 256, "frequency_max": 4000, "truncation": "rand_trunc"},
            ),
        ),
    }
    build, extractor = built[kind]
    model = build().eval()
    model.save_pretrained(directory)
    extractor.save_pretrained(directory)
    return model
