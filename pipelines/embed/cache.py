"""Embeddings by the digest of their input, shared by all encode actors of a run: identical inputs are encoded once.

An actor claims the digests of a part. What nobody has is its own to encode, what another actor claimed it waits for,
and what is known it takes. A claim that is not kept in time (its actor was killed) falls to the next who asks. The
newest embeddings are kept up to a limit in bytes; what was dropped is encoded again. Several actors share a cache in
a process of its own; a run's only actor holds it itself.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import ray

LIMIT_BYTES = 256 * 2**20
CLAIM_S = 30.0  # seconds a claim holds: longer than a part takes, or an input is encoded twice


@dataclass(frozen=True)
class Claimed:
    """What became of a claim: known embeddings, digests to encode, and digests that another actor is encoding."""

    known: dict[bytes, np.ndarray]
    own: list[bytes]
    others: list[bytes]


class EmbeddingCache:
    """The cache itself, of a run with one encode actor; more share it as a `SharedCache`."""

    def __init__(self, limit_bytes: int = LIMIT_BYTES, claim_s: float = CLAIM_S) -> None:
        self._limit, self._claim_s, self._bytes = limit_bytes, claim_s, 0
        self._values: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._claimed_at: dict[bytes, float] = {}

    def claim(self, digests: Sequence[bytes]) -> Claimed:
        """Claim what is neither known nor claimed by another."""
        now = time.monotonic()
        known = {digest: self._values[digest] for digest in digests if digest in self._values}
        missing = [digest for digest in digests if digest not in known]
        own = [digest for digest in missing if now - self._claimed_at.get(digest, -self._claim_s) >= self._claim_s]
        self._claimed_at.update(dict.fromkeys(own, now))
        return Claimed(known, own, [digest for digest in missing if self._claimed_at[digest] != now])

    def release(self) -> None:
        """Drop all claims: an actor was killed, and nobody knows which were its own."""
        self._claimed_at.clear()

    def add(self, values: Mapping[bytes, np.ndarray]) -> None:
        """Keep embeddings; each is copied, so that it does not keep its whole batch in memory."""
        for digest, value in values.items():
            self._claimed_at.pop(digest, None)
            if digest not in self._values:
                self._values[digest] = value.copy()
                self._bytes += value.nbytes
        while self._bytes > self._limit:
            _, oldest = self._values.popitem(last=False)
            self._bytes -= oldest.nbytes


class SharedCache:
    """The same cache in a process of its own, for several actors; pickled, it is a handle to that process."""

    def __init__(self) -> None:
        # No CPU of its own; started anew and empty if it is killed.
        self._actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(EmbeddingCache).remote()

    def claim(self, digests: Sequence[bytes]) -> Claimed:
        """Claim what is neither known nor claimed by another; waits for the answer."""
        claimed: Claimed = ray.get(self._actor.claim.remote(digests))
        return claimed

    def release(self) -> None:
        """Drop all claims; does not wait."""
        self._actor.release.remote()

    def add(self, values: Mapping[bytes, np.ndarray]) -> None:
        """Keep embeddings; does not wait."""
        self._actor.add.remote(values)
