"""The cache of embeddings: each digest is encoded by one actor, claims run out, and memory is bounded."""

from __future__ import annotations

import numpy as np

from pipelines.embed.cache import EmbeddingCache

A, B, C = b"a", b"b", b"c"


def test_a_digest_is_one_actors_to_encode_and_then_everybodys() -> None:
    cache = EmbeddingCache()
    first, second = cache.claim([A, B]), cache.claim([B, C])
    assert (first.own, first.others, first.known) == ([A, B], [], {})
    assert (second.own, second.others) == ([C], [B])
    cache.add({A: np.ones(2), B: np.zeros(2)})
    third = cache.claim([A, B, C])
    assert third.own == []
    assert third.others == [C]
    assert third.known[A].tolist() == [1, 1]


def test_a_claim_that_is_not_kept_falls_to_the_next() -> None:
    cache = EmbeddingCache(claim_s=0)
    assert cache.claim([A]).own == [A]
    assert cache.claim([A]).own == [A]
    cache = EmbeddingCache()
    assert cache.claim([A]).own == [A]
    cache.release()
    assert cache.claim([A]).own == [A]


def test_the_oldest_are_dropped_past_the_limit_and_claimed_again() -> None:
    cache = EmbeddingCache(limit_bytes=3 * 8)
    for digest in (A, B, C):
        cache.add({digest: np.full(1, float(ord(digest)))})
        cache.add({digest: np.full(1, 0.0)})  # the first stays, and is not counted twice
    cache.add({b"d": np.ones(2)})
    claimed = cache.claim([A, B, C, b"d"])
    assert claimed.own == [A, B]
    assert claimed.known[C].tolist() == [99.0]
