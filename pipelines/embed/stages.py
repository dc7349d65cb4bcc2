"""How parts stream through `embed` and `predict` to the actors that hold the encoder.

In: parts, each the name of a spooled one or its rows. Out: what the actor makes of each. On a CPU an actor reads and
decodes its own parts, on one thread an actor: nothing is copied between processes, and no thread waits for another.
Beside GPUs, decode tasks on the other cores keep the actors fed.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import ray.data
import torch

from pipelines.embed.decoding import DecodedPart, decode_rows
from pipelines.ray_session import num_cpus, num_gpus, quieten_ray_data
from uml_core.config import EmbedConfig, EncoderConfig
from uml_core.corpora.rows import Row
from uml_core.encoders import Encoder, build_encoder
from uml_core.store.corpus_store import CorpusStore

Batch = dict[str, np.ndarray]
ReadPart = Callable[[Any], Sequence[Row]]
EncoderSettings = tuple[EncoderConfig, str]  # and its modality: what a task or an actor builds an encoder from
# CPUs of a stage's worker, unequal on purpose: Ray Data would fuse equal ones into one actor, and decoding would stop
# while it encodes. Small, so that as many actors as cores leave room for Ray's own tasks.
DECODE_CPUS, ENCODE_CPUS = 0.25, 0.5
CORES_PER_ACTOR = 4  # on machines with more cores than this; weights are held once an actor


def decode_part(batch: Batch, encoder: EncoderSettings, read: ReadPart) -> Batch:
    """Decode one part in a task of its own, for `decoded_part` in an actor (a Ray Data batch of one row)."""
    part = decode_rows(read(batch["part"][0]), build_encoder(*encoder))
    return {"decoded": np.array([pickle.dumps(part, protocol=pickle.HIGHEST_PROTOCOL)], dtype=object)}


def decoded_part(batch: Batch, encoder: Encoder, read: ReadPart) -> DecodedPart:
    """The decoded part an actor was handed: from a decode task, or to be read and decoded here."""
    if "decoded" not in batch:
        return decode_rows(read(batch["part"][0]), encoder)
    part: DecodedPart = pickle.loads(batch["decoded"][0])
    return part


@dataclass(frozen=True)
class Workers:
    """How many actors encode, how many tasks decode beside them (0: the actors do), on which device."""

    actors: int
    decoders: int
    device: str

    @classmethod
    def from_settings(cls, settings: EmbedConfig, *, num_parts: int) -> Workers:
        """What the settings come to on this cluster; Ray is running."""
        cpus, gpus = num_cpus(), num_gpus()
        own = gpus or (cpus if cpus <= CORES_PER_ACTOR else cpus // CORES_PER_ACTOR)
        actors = min(own if settings.actors == "auto" else settings.actors, num_parts)
        beside = max(1, cpus - actors) if gpus else 0
        return cls(
            actors, beside if settings.decoders == "auto" else settings.decoders, device="cuda" if gpus else "cpu"
        )


def stream_parts(
    parts: Sequence[Any], actor: type, workers: Workers, *, encoder: Encoder, read: ReadPart, arguments: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Stream parts through Ray Data to the actors; yields what they return.

    `read` turns a part into rows: one block, the unit of work, of writing and of resuming. An instance of `actor` takes
    a batch of one part. The encoder has no weights: its settings go to the tasks that decode and to the actors.
    """
    quieten_ray_data()
    settings: EncoderSettings = (encoder.config, encoder.modality)
    dataset = ray.data.from_items([{"part": part} for part in parts], override_num_blocks=len(parts))
    if workers.decoders:
        dataset = dataset.map_batches(
            decode_part,
            batch_size=1,
            num_cpus=DECODE_CPUS,
            compute=ray.data.TaskPoolStrategy(size=workers.decoders),
            fn_kwargs={"encoder": settings, "read": read},
        )
    yield from dataset.map_batches(
        actor,
        batch_size=1,
        num_cpus=ENCODE_CPUS,
        num_gpus=1 if workers.device == "cuda" else 0,
        compute=ray.data.ActorPoolStrategy(size=workers.actors),
        fn_constructor_kwargs={"encoder": settings, "read": read, "workers": workers, **arguments},
    ).iter_rows()


def set_encoder_threads(workers: Workers) -> None:
    """Share this machine's cores among the encode actors: Ray gives a process one OpenMP thread by default."""
    if workers.device == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers.actors))


class EncodePart:
    """An actor that holds the encoder; it encodes one part at a time and writes it into the store."""

    def __init__(
        self,
        encoder: EncoderSettings,
        read: ReadPart,
        workers: Workers,
        *,
        store: tuple[str, str, str],
        settings: EmbedConfig,
        precision: str,
    ) -> None:
        set_encoder_threads(workers)
        self._encoder, self._read = build_encoder(*encoder), read
        self._settings = settings
        self._store = CorpusStore(*store)
        self._encoder.load(device=workers.device, precision=precision)
        fast = self._encoder.gpu_batch_size if workers.device == "cuda" else self._encoder.cpu_batch_size
        self._batch_size = fast if settings.batch_size == "auto" else settings.batch_size
        self._name = ray.get_runtime_context().get_actor_id() or ""

    def __call__(self, batch: Batch) -> Batch:
        """Encode and write one part; returns its counts, its first reject's reason and its seconds."""
        part = decoded_part(batch, self._encoder, self._read)
        started = time.perf_counter()
        rows, values, encoded_rows = self._encode(part)
        encoded = time.perf_counter()
        self._store.write_part(rows, values, part.rejected, dim=self._encoder.dim)
        written = time.perf_counter()
        first = part.rejected[0] if part.rejected else None
        facts = {
            "rows": len(rows) + len(part.rejected),
            "rejected": len(part.rejected),
            "first_reject": "" if first is None else f"{first[0].id}: {first[1]}",
            "encoded": encoded_rows,
            "batch_size": self._batch_size,
            "read_s": part.read_s,
            "decode_s": part.decode_s,
            "encode_s": encoded - started,
            "write_s": written - encoded,
            "finished_at": time.time(),
            "actor": self._name,
        }
        return {name: np.array([value]) for name, value in facts.items()}

    def _encode(self, part: DecodedPart) -> tuple[list[Row], Any, int]:
        """The rows that have embeddings, their embeddings in the dtype to store, and how many were encoded."""
        inputs = dict(zip(part.digests, part.decoded, strict=True))  # identical ones of a part are encoded once
        encoded = self._encoder.encode_all(list(inputs.values()), self._batch_size)
        found = dict(zip(inputs, encoded, strict=True))
        rows, kept = [], []
        for row, digest in zip(part.rows, part.digests, strict=True):
            if np.isfinite(found[digest]).all():
                rows.append(row)
                kept.append(found[digest])
            else:
                part.rejected.append((row, "its embedding holds NaN or infinity in this precision"))
        dtype = self._settings.dtype
        if self._encoder.yields_tokens:
            return rows, [tokens_TD.astype(dtype) for tokens_TD in kept], len(inputs)
        values = np.stack(kept) if kept else np.empty((0, self._encoder.dim))
        return rows, values.astype(dtype), len(inputs)
