"""Text models whose transformer blocks can start another trunk, and which of their tensors is which part of a block.

In: a local directory, `minilm_l6` (the packaged model), or a name on the hub. Out: a `SourceModel`, whose parts are
named as in `plan`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from uml_core.encoders.weights import fetched, from_hub, packaged_minilm, whole_from_hub
from uml_core.errors import InputError, listing, nearest
from uml_core.transfer.plan import KINDS, SETTING, Piece, Shape, SourceModel

PACKAGED = "minilm_l6"


@dataclass(frozen=True)
class Layout:
    """Where a model type keeps the parts of block {}: names before ".weight" and ".bias"."""

    block: str
    qkv: tuple[str, ...]  # one fused tensor, or queries, keys and values apart
    attention_out: str
    mlp_in: str
    mlp_out: str
    norms: tuple[str, str]  # pre-LN: before attention, before the MLP; post-LN: after attention, after the MLP
    outer_norm: str  # pre-LN: behind the last block; post-LN: of the embeddings
    post_norm: bool = True
    transposed: bool = False  # weights as (inputs, outputs)
    causal: bool = False  # a token sees those before it alone


_BERT = Layout(
    block="encoder.layer.{}",
    qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
    attention_out="attention.output.dense",
    mlp_in="intermediate.dense",
    mlp_out="output.dense",
    norms=("attention.output.LayerNorm", "output.LayerNorm"),
    outer_norm="embeddings.LayerNorm",
)
LAYOUTS: Mapping[str, Layout] = {
    **dict.fromkeys(("bert", "camembert", "roberta", "xlm-roberta"), _BERT),
    "distilbert": Layout(
        block="transformer.layer.{}",
        qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        attention_out="attention.out_lin",
        mlp_in="ffn.lin1",
        mlp_out="ffn.lin2",
        norms=("sa_layer_norm", "output_layer_norm"),
        outer_norm="embeddings.LayerNorm",
    ),
    "gpt2": Layout(
        block="h.{}",
        qkv=("attn.c_attn",),
        attention_out="attn.c_proj",
        mlp_in="mlp.c_fc",
        mlp_out="mlp.c_proj",
        norms=("ln_1", "ln_2"),
        outer_norm="ln_f",
        post_norm=False,
        transposed=True,
        causal=True,
    ),
}


def load_source(name: str) -> SourceModel:
    """Load a text model.

    Raises:
        InputError: it is not there, is damaged, is of a type without a layout here, or scales its attention unusually.
    """
    location = packaged_minilm() if name == PACKAGED else fetched(name, setting=SETTING)
    config = from_hub(AutoConfig, location, setting=SETTING, path_setting=SETTING)
    layout = LAYOUTS.get(config.model_type)
    if layout is None:
        raise InputError(
            f"{SETTING} '{name}' is of type '{config.model_type}'; blocks can come from {listing(sorted(LAYOUTS))}"
            f"{nearest(config.model_type, LAYOUTS)}"
        )
    if not getattr(config, "scale_attn_weights", True) or getattr(config, "scale_attn_by_inverse_layer_idx", False):
        raise InputError(f"{SETTING} '{name}' scales attention in a way of its own, which no ViT does; take another")
    options = {"config": config, "dtype": torch.float32, "is_unused": lambda key: key.startswith("pooler")}
    tensors = whole_from_hub(AutoModel, location, setting=SETTING, path_setting=SETTING, **options).state_dict()
    blocks = [_block(layout, tensors, index, config.num_hidden_layers) for index in range(config.num_hidden_layers)]
    return SourceModel(
        name=name,
        model_type=config.model_type,
        shape=Shape(config.hidden_size, config.num_attention_heads, len(blocks[0]["mlp_in.weight"].value)),
        activation=_first_of(config, "hidden_act", "activation_function", "activation"),
        norm_eps=float(_first_of(config, "layer_norm_eps", "layer_norm_epsilon", default=1e-12)),
        post_norm=layout.post_norm,
        causal=layout.causal,
        blocks=tuple(blocks),
        shapes={key: tuple(value.shape) for key, value in tensors.items()},
    )


def _block(layout: Layout, tensors: Mapping[str, Tensor], index: int, depth: int) -> dict[str, Piece]:
    def inside(part: str, block: int = index) -> str:
        return f"{layout.block.format(block)}.{part}"

    inner = [inside(norm, block) for block in range(depth) for norm in layout.norms]
    # In the order in which sub-layers read them.
    norms = [layout.outer_norm, *inner] if layout.post_norm else [*inner, layout.outer_norm]
    reads = dict(zip(("attention_reads", "mlp_reads", "next_reads"), norms[2 * index : 2 * index + 3], strict=True))
    linear = {"attention_out": layout.attention_out, "mlp_in": layout.mlp_in, "mlp_out": layout.mlp_out}
    named = {"qkv": tuple(map(inside, layout.qkv)), **{part: (inside(name),) for part, name in linear.items()}}
    named |= {part: (name,) for part, name in reads.items()}
    pieces = {}
    for part, names in named.items():
        for kind in KINDS:
            full = tuple(f"{name}.{kind}" for name in names)
            transposed = layout.transposed and kind == "weight" and part not in reads
            value = torch.cat([tensors[name] for name in full])
            pieces[f"{part}.{kind}"] = Piece(full, value.t().contiguous() if transposed else value, transposed)
    return pieces


def _first_of(config: Any, *names: str, default: Any = None) -> Any:
    return next((getattr(config, name) for name in names if getattr(config, name, None) is not None), default)
