"""Rows/s of `pipelines.embed` against a bare loop that decodes and encodes the same files in one process.

Both use the same encoder in the same layout, precision, batch size and thread count; the bare loop reads and decodes
ahead in one thread, as a DataLoader would. Ours is the steady rate, after the encoder is loaded; start-up is apart.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.figures import Figure, peak_memory
from pipelines import embed
from uml_core.config import Experiment, parse_experiment
from uml_core.encoders import Encoder, Raw, build_encoder

PICTURES, SENTENCES, PART_ROWS = 1536, 6144, 256


def write_corpora(directory: Path) -> Experiment:
    """Write pictures of 224 x 224 random blocks and sentences of 2 to 20 words."""
    rng = np.random.default_rng(0)
    folder = directory / "pictures" / "train" / "noise"
    folder.mkdir(parents=True)
    for index in range(PICTURES):
        blocks = rng.integers(0, 256, size=(14, 14, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize((224, 224), Image.Resampling.NEAREST).save(folder / f"{index:05d}.png")
    words = ["red", "small", "cat", "on", "a", "mat", "beside", "the", "old", "harbour", "wall"]
    sentences = [" ".join(rng.choice(words, size=rng.integers(2, 21))) for _ in range(SENTENCES)]
    lines = [json.dumps({"text": f"{text} {index}", "label": "noise"}) for index, text in enumerate(sentences)]
    (directory / "names.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return parse_experiment(
        {
            "name": "benchmark",
            "store": str(directory / "store"),
            "target": "pictures",
            "corpora": {
                "pictures": {"modality": "image", "format": "folder", "path": str(directory / "pictures")},
                "names": {"modality": "text", "format": "table", "path": str(directory / "names.jsonl")},
            },
            "embed": {"part_rows": PART_ROWS, "precision": "bfloat16"},
        }
    )


def bare_rows_per_s(encoder: Encoder, raw: list[Callable[[], Raw]], *, precision: str, batch_size: int) -> float:
    """Decode ahead in a thread, encode in this one; rows sorted by cost inside a part, as ours."""
    torch.set_num_threads(os.cpu_count() or 1)
    encoder.load(precision=precision)
    parts = [raw[start : start + PART_ROWS] for start in range(0, len(raw), PART_ROWS)]

    def decode(part: list[Callable[[], Raw]]) -> list[object]:
        return [encoder.decode(read()) for read in part]

    encoder.encode_all(decode(parts[0][:batch_size]), batch_size)  # warm-up
    with ThreadPoolExecutor(1) as pool:
        started = time.perf_counter()
        for decoded in pool.map(decode, parts):
            encoder.encode_all(decoded, batch_size)
        return len(raw) / (time.perf_counter() - started)


def measure(directory: Path) -> list[Figure]:
    """Measure bare, ours, bare for pictures and sentences."""
    experiment = write_corpora(directory)
    files = sorted((directory / "pictures").rglob("*.png"))
    sentences = [json.loads(line)["text"] for line in (directory / "names.jsonl").read_text().splitlines()]
    raw: dict[str, list[Callable[[], Raw]]] = {
        "pictures": [file.read_bytes for file in files],
        "names": [text.__str__ for text in sentences],
    }
    settings = {"precision": experiment.embed.precision, "batch_size": experiment.embed.batch_size}

    def bare(corpus: str) -> float:
        encoder = experiment.encoder_of(corpus)
        assert encoder is not None
        return bare_rows_per_s(build_encoder(encoder, experiment.corpora[corpus].modality), raw[corpus], **settings)

    before = {corpus: bare(corpus) for corpus in raw}
    with peak_memory() as memory:
        ours = embed.run(experiment).results["corpora"]
    after = {corpus: bare(corpus) for corpus in raw}
    figures = []
    for corpus, words in (("pictures", "EfficientNet-lite0, bfloat16"), ("names", "MiniLM, bfloat16")):
        both = (before[corpus] + after[corpus]) / 2
        figures.append(Figure(f"embed: rows/s of {words}, steady", ours[corpus]["steady_rows_per_s"], both))
        startup = ours[corpus]["stage_s"]["until_first_part"]
        figures.append(Figure(f"embed: s until the first part of {PART_ROWS} rows, {words}", startup, digits=1))
    return [*figures, Figure("embed: peak memory of all processes, GiB", memory.gib, digits=2)]
