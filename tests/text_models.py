"""Small text models with random weights, norms included, saved as the hub would hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as hf

WIDTH, HEADS, HIDDEN, DEPTH = 64, 2, 192, 3  # width, heads and MLP of timm's test_vit


def text_model(kind: str, *, activation: str = "gelu", width: int = WIDTH, heads: int = HEADS) -> Any:
    """A text model of a type; its norms' weights and all biases are random, too."""
    sizes = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": HIDDEN}
    bert = {**sizes, "num_hidden_layers": DEPTH, "hidden_act": activation, "vocab_size": 12, "layer_norm_eps": 1e-6}
    distil = {"dim": width, "n_heads": heads, "hidden_dim": HIDDEN, "n_layers": DEPTH, "activation": activation}
    gpt2 = {"n_embd": width, "n_head": heads, "n_inner": HIDDEN, "n_layer": DEPTH, "activation_function": activation}
    tokens = {"bos_token_id": 0, "eos_token_id": 1}
    torch.manual_seed(0)
    built = {
        "bert": lambda: hf.BertModel(hf.BertConfig(**bert)),
        "roberta": lambda: hf.RobertaModel(hf.RobertaConfig(**bert, pad_token_id=0)),
        "distilbert": lambda: hf.DistilBertModel(hf.DistilBertConfig(**distil, vocab_size=12)),
        "gpt2": lambda: hf.GPT2Model(hf.GPT2Config(**gpt2, **tokens, vocab_size=12, layer_norm_epsilon=1e-6)),
        "llama": lambda: hf.LlamaModel(hf.LlamaConfig(**sizes, num_hidden_layers=1, vocab_size=12)),
    }
    model = built[kind]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def save_text_model(directory: Path, kind: str, **changes: Any) -> Any:
    """Save a text model's weights and config, without a tokenizer; returns the model."""
    model = text_model(kind, **changes)
    model.save_pretrained(directory)
    return model
