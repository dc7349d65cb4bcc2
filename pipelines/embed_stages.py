"""What runs on the workers of `embed` and `predict`: decode tasks on any CPU, and the actor that holds the encoder.

In: the name of a spooled part. `decode_part` reads and decodes its rows; `EncodePart` encodes them and writes the part.
Out: what became of the part, and where its seconds went. Identical inputs are encoded once: an actor remembers the
embeddings of what it has seen, the newest of them up to a limit.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from uml_core.config import EmbedConfig
from uml_core.corpora.rows import Row
from uml_core.encoders import Decoded, Encoder, Raw, RowError
from uml_core.encoders.base import is_finite
from uml_core.encoders.batching import choose_batch_size
from uml_core.spool import RowSpool
from uml_core.store import CorpusStore

Batch = dict[str, np.ndarray]
# CPUs of a stage's worker, unequal on purpose: Ray Data would fuse equal ones into one actor, and decoding would stop
# while it encodes. Their sum is under one, so that both run on a single core.
DECODE_CPUS, ENCODE_CPUS = 0.25, 0.5
REMEMBERED_BYTES = 128 * 2**20  # of embeddings, in an encode actor


@dataclass(frozen=True)
class DecodedPart:
    """The rows of a part ready to be encoded, a digest of each one's raw content, and the unreadable ones."""

    rows: list[Row]
    decoded: list[Decoded]
    digests: list[bytes]
    rejected: list[tuple[Row, str]]
    read_s: float
    decode_s: float


def decode_rows(rows: Sequence[Row], encoder: Encoder) -> DecodedPart:
    """Read and decode rows; an unreadable one is set apart with its reason."""
    part = DecodedPart([], [], [], [], 0.0, 0.0)
    read_s = decode_s = 0.0
    for row in rows:
        started = time.perf_counter()
        try:
            raw = row.read()
            read = time.perf_counter()
            read_s += read - started
            part.decoded.append(encoder.decode(raw))
            decode_s += time.perf_counter() - read
        except RowError as error:
            part.rejected.append((row, str(error)))
            continue
        part.rows.append(row)
        part.digests.append(_digest(raw))
    return DecodedPart(part.rows, part.decoded, part.digests, part.rejected, read_s, decode_s)


def decode_part(batch: Batch, encoder: Encoder, spool: RowSpool) -> Batch:
    """Decode one spooled part (a Ray Data batch of one row)."""
    return packed(decode_rows(spool.read(str(batch["part"][0])), encoder))


def packed(part: DecodedPart) -> Batch:
    """Return a decoded part as a Ray Data batch of one row."""
    return {"decoded": np.array([pickle.dumps(part, protocol=pickle.HIGHEST_PROTOCOL)], dtype=object)}


def unpacked(batch: Batch) -> DecodedPart:
    """Return the part that a decode task handed over."""
    part: DecodedPart = pickle.loads(batch["decoded"][0])
    return part


def _digest(raw: Raw) -> bytes:
    return hashlib.blake2b(raw.encode() if isinstance(raw, str) else raw, digest_size=16).digest()


def decode_workers(num_cpus: int, *, actors: int, device: str) -> int:
    """Return how many decode tasks run at once: beside encoders on the CPU a few, beside GPUs all other cores."""
    return max(1, num_cpus // 4 if device == "cpu" else num_cpus - actors)


def set_encoder_threads(*, actors: int, device: str) -> None:
    """Share this machine's cores among the encode actors: Ray gives a process one OpenMP thread by default."""
    if device == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // actors))


class EncodePart:
    """An actor that holds the encoder; it encodes one part at a time and writes it into the store."""

    def __init__(
        self, encoder: Encoder, store: tuple[str, str, str], settings: EmbedConfig, precision: str, device: str
    ) -> None:
        set_encoder_threads(actors=settings.actors, device=device)
        self._encoder, self._settings, self._device = encoder, settings, device
        self._store = CorpusStore(*store)
        self._encoder.load(device=device, precision=precision)
        self._batch_size = None if settings.batch_size == "auto" else settings.batch_size
        self._remembered = RememberedEmbeddings(REMEMBERED_BYTES)

    def __call__(self, batch: Batch) -> Batch:
        """Encode and write one decoded part; returns its counts, its first reject's reason and its seconds."""
        part = unpacked(batch)
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
            "batch_size": self._batch_size or 0,
            "read_s": part.read_s,
            "decode_s": part.decode_s,
            "encode_s": encoded - started,
            "write_s": written - encoded,
            "finished_at": time.time(),
        }
        return {name: np.array([value]) for name, value in facts.items()}

    def _encode(self, part: DecodedPart) -> tuple[list[Row], Any, int]:
        """Return the rows that have embeddings, their embeddings in the dtype to store, and how many were encoded."""
        new = {digest: row for row, digest in enumerate(part.digests) if digest not in self._remembered}
        positions = list(new.values())
        decoded = [part.decoded[position] for position in positions]
        if self._batch_size is None:
            self._batch_size = choose_batch_size(self._encoder, decoded, device=self._device)
        encode = self._encoder.encode_all_tokens if self._encoder.yields_tokens else self._encoder.encode_all
        values = encode(decoded, self._batch_size)
        finite = is_finite(values)
        found = dict(zip(new, values, strict=True))
        overflowed = {digest for digest, good in zip(new, finite.tolist(), strict=True) if not good}
        # Before new ones push old ones out: what this part repeats from earlier parts.
        found |= {digest: self._remembered[digest] for digest in set(part.digests) - found.keys()}
        self._remembered.update({digest: found[digest] for digest in new if digest not in overflowed})
        rows = [row for row, digest in zip(part.rows, part.digests, strict=True) if digest not in overflowed]
        kept = [found[digest] for digest in part.digests if digest not in overflowed]
        for row, digest in zip(part.rows, part.digests, strict=True):
            if digest in overflowed:
                part.rejected.append((row, "its embedding holds NaN or infinity in this precision"))
        return rows, self._stored(kept), len(positions)

    def _stored(self, values: list[np.ndarray]) -> Any:
        dtype = self._settings.dtype
        if self._encoder.yields_tokens:
            return [tokens_TD.astype(dtype) for tokens_TD in values]
        return np.stack(values).astype(dtype) if values else np.empty((0, self._encoder.dim), dtype=dtype)


class RememberedEmbeddings:
    """Embeddings by the digest of their input, the oldest dropped past a limit in bytes."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit, self._bytes = limit_bytes, 0
        self._values: OrderedDict[bytes, np.ndarray] = OrderedDict()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._values

    def __getitem__(self, digest: bytes) -> np.ndarray:
        return self._values[digest]

    def update(self, values: Mapping[bytes, np.ndarray]) -> None:
        """Add embeddings; each is copied, so that it does not keep its whole batch in memory."""
        for digest, value in values.items():
            self._values[digest] = value.copy()
            self._bytes += value.nbytes
        while self._bytes > self._limit and self._values:
            _, oldest = self._values.popitem(last=False)
            self._bytes -= oldest.nbytes
