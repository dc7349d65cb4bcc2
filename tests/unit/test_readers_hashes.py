"""The set of hashes: it answers as a set does, and holds 16 bytes a member."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable
from dataclasses import replace
from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uml_core.corpora.content import ByteRange, Cell
from uml_core.corpora.rows import HASH, Hashes, HashSet, Row, hash64, hashes_of

NUMBERS = st.integers(0, 30) | st.sampled_from([2**63, 2**64, 2**127, 2**128 - 1])
BATCHES = st.lists(st.lists(NUMBERS, max_size=12), max_size=20)


def as_hashes(numbers: Iterable[int]) -> Hashes:
    """Numbers below 2**128 as hashes: small ones differ from one another in the last byte alone."""
    return np.array([number.to_bytes(16, "big") for number in numbers], dtype=HASH)


@given(BATCHES)
def test_it_answers_as_a_set_does(batches: list[list[int]]) -> None:
    ours, theirs = HashSet(), set[int]()
    for batch in batches:
        expected = []
        for value in batch:
            expected.append(value in theirs)
            theirs.add(value)
        assert ours.add(as_hashes(batch)).tolist() == expected
        assert len(ours) == len(theirs)


def test_memory_is_sixteen_bytes_a_member() -> None:
    rng = np.random.default_rng(0)
    members = HashSet()
    tracemalloc.start()
    try:
        for _ in range(200):
            members.add(np.frombuffer(rng.bytes(16 * 1000), dtype=HASH))
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(members) == 200_000
    assert held < 18 * len(members)
    assert peak < 60 * len(members)


def test_hashes_are_the_same_everywhere_and_keep_values_apart() -> None:
    assert hash64("a", None, 1) == int.from_bytes(blake2b(b"('a', None, 1)", digest_size=8).digest(), "little")
    assert hashes_of(["a"]).tolist() == [blake2b(b"('a',)", digest_size=16).digest()]
    assert len({hash64("ab", "c"), hash64("a", "bc"), hash64("abc"), hash64("\ud800"), hash64(("a",))}) == 5


ROW = Row("x", "cat", "train", path="/data/x.png", stamp="1-2")


@pytest.mark.parametrize(
    "change",
    [
        {"id": "y"},
        {"label": None},
        {"label": "dog"},
        {"split": "val"},
        {"text": "a cat"},
        {"path": "/data/y.png"},
        {"member": ByteRange(0, 10)},
        {"member": Cell(0, 10, "image")},
        {"stamp": "1-3"},
        {"fault": "no path"},
    ],
    ids=str,
)
def test_a_rows_key_changes_with_everything_that_is_stored(change: dict[str, object]) -> None:
    assert replace(ROW, **change).key != ROW.key  # type: ignore[arg-type]
    assert len(ROW.key) == 16
    earlier = hash64("x", "cat", "train", None, "/data/x.png", None, "1-2", None)
    assert ROW.key[:8] == earlier.to_bytes(8, "little"), "as stores by earlier versions have it"
    assert replace(ROW).key == ROW.key


def test_ranges_and_cells_have_different_keys() -> None:
    keys = {replace(ROW, member=member).key for member in (ByteRange(1, 2), ByteRange(2, 1), Cell(1, 2, "image"))}
    assert len(keys) == 3
