"""What an actor of `embed` does: it holds the encoders, encodes parts of rows and writes them into the store."""

from __future__ import annotations

import functools
import time
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipelines.embed.decoding import DecodedPart
from pipelines.embed.facts import STAGES
from pipelines.embed.stages import (
    Batch,
    EncoderSettings,
    ReadPart,
    corpus_of,
    decoded_part,
)
from pipelines.embed.workers import Workers, set_encoder_threads
from pipelines.metrics import StepMetrics
from uml_core.config import EmbedConfig
from uml_core.corpora.rows import Row
from uml_core.encoders import Encoder, build_encoder
from uml_core.store.corpus_store import CorpusStore


class EncodePart:
    """An actor that encodes one part at a time and writes it into its corpus's store.

    It loads an encoder with the first part that needs it; corpora of equal settings share one.
    """

    def __init__(
        self,
        encoder: Mapping[str, EncoderSettings],
        read: ReadPart,
        workers: Workers,
        *,
        stores: Mapping[str, tuple[str, str, str]],
        settings: EmbedConfig,
        precision: str,
        experiment: str,
    ) -> None:
        set_encoder_threads(workers)
        self._encoders, self._loaded = encoder, dict[EncoderSettings, Encoder]()
        self._read, self._settings, self._device, self._precision = read, settings, workers.device, precision
        self._store_of = functools.cache(lambda corpus: CorpusStore(*stores[corpus]))
        self._name = uuid.uuid4().hex
        self._metrics, self._idle_since = StepMetrics("embed", experiment), time.perf_counter()

    def __call__(self, batch: Batch) -> Batch:
        """Encode and write one part; returns its counts, its first reject's reason and its seconds."""
        began_at, corpus, wait_s = time.time(), corpus_of(batch["part"][0]), time.perf_counter() - self._idle_since
        encoder = self._encoder_of(corpus)
        part = decoded_part(batch, encoder, self._read)
        started = time.perf_counter()
        rows, values, encoded_rows = self._encode(part, encoder)
        encoded = time.perf_counter()
        self._store_of(corpus).write_part(rows, values, part.rejected, dim=encoder.dim)
        written = time.perf_counter()
        first = part.rejected[0] if part.rejected else None
        facts = {
            "corpus": corpus,
            "rows": len(rows) + len(part.rejected),
            "rejected": len(part.rejected),
            "first_reject": "" if first is None else f"{first[0].id}: {first[1]}",
            "encoded": encoded_rows,
            "batch_size": self._batch_size(encoder),
            "read_s": part.read_s,
            "decode_s": part.decode_s,
            "encode_s": encoded - started,
            "write_s": written - encoded,
            "started_at": began_at,
            "finished_at": time.time(),
            "actor": self._name,
        }
        self._record(facts, wait_s)
        return {name: np.array([value]) for name, value in facts.items()}

    def _record(self, facts: Mapping[str, Any], wait_s: float) -> None:
        corpus = facts["corpus"].partition("/")[0]  # of a slice, too
        self._metrics.count("uml_rows", facts["rows"] - facts["rejected"], corpus=corpus)
        self._metrics.count("uml_rejected_rows", facts["rejected"], corpus=corpus)
        for stage, seconds in {"wait": wait_s, **{stage: facts[f"{stage}_s"] for stage in STAGES}}.items():
            self._metrics.count("uml_seconds", seconds, corpus=corpus, stage=stage)
        self._idle_since = time.perf_counter()

    def _encoder_of(self, corpus: str) -> Encoder:
        settings = self._encoders[corpus]
        if settings not in self._loaded:
            self._loaded[settings] = build_encoder(*settings)
            self._loaded[settings].load(device=self._device, precision=self._precision)
        return self._loaded[settings]

    def _batch_size(self, encoder: Encoder) -> int:
        fast = encoder.gpu_batch_size if self._device == "cuda" else encoder.cpu_batch_size
        return fast if self._settings.batch_size == "auto" else self._settings.batch_size

    def _encode(self, part: DecodedPart, encoder: Encoder) -> tuple[list[Row], Any, int]:
        """The rows that have embeddings, their embeddings in the dtype to store, and how many were encoded."""
        inputs = dict(zip(part.digests, part.decoded, strict=True))  # identical ones of a part are encoded once
        encoded = encoder.encode_all(list(inputs.values()), self._batch_size(encoder))
        found = dict(zip(inputs, encoded, strict=True))
        rows, kept = [], []
        for row, digest in zip(part.rows, part.digests, strict=True):
            if np.isfinite(found[digest]).all():
                rows.append(row)
                kept.append(found[digest])
            else:
                part.rejected.append((row, "its embedding holds NaN or infinity in this precision"))
        dtype = self._settings.dtype
        if encoder.yields_tokens:
            return rows, [tokens_TD.astype(dtype) for tokens_TD in kept], len(inputs)
        values = np.stack(kept) if kept else np.empty((0, encoder.dim))
        return rows, values.astype(dtype), len(inputs)
