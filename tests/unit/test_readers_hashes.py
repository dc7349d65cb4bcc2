"""The set of hashes: it answers as a set does, and holds 8 bytes a member."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uml_core.corpora.content import ByteRange, Cell
from uml_core.corpora.rows import HashSet64, Row, hash64, hashes_of

BATCHES = st.lists(st.lists(st.integers(0, 30) | st.sampled_from([2**63, 2**64 - 1]), max_size=12), max_size=20)


@given(BATCHES)
def test_it_answers_as_a_set_does(batches: list[list[int]]) -> None:
    ours, theirs = HashSet64(), set[int]()
    for batch in batches:
        expected = []
        for value in batch:
            expected.append(value in theirs)
            theirs.add(value)
        assert ours.add(np.array(batch, dtype=np.uint64)).tolist() == expected
        assert len(ours) == len(theirs)


def test_memory_is_eight_bytes_a_member() -> None:
    rng = np.random.default_rng(0)
    members = HashSet64()
    tracemalloc.start()
    try:
        for _ in range(200):
            members.add(rng.integers(0, 2**63, 1000, dtype=np.uint64))
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(members) == 200_000
    assert held < 10 * len(members)
    assert peak < 30 * len(members)


def test_hashes_are_the_same_everywhere_and_keep_values_apart() -> None:
    assert hash64("a", None, 1) == int.from_bytes(blake2b(b"('a', None, 1)", digest_size=8).digest(), "little")
    assert hashes_of(["a", "b"]).tolist() == [hash64("a"), hash64("b")]
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
    assert 0 <= ROW.key < 2**64
    assert replace(ROW).key == ROW.key


def test_ranges_and_cells_have_different_keys() -> None:
    keys = {replace(ROW, member=member).key for member in (ByteRange(1, 2), ByteRange(2, 1), Cell(1, 2, "image"))}
    assert len(keys) == 3
