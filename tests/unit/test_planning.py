"""What is missing of a corpus, and exactly once: a corpus that changes, a writer that dies at any file operation."""

from __future__ import annotations

import base64
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uml_core.corpora.content import ByteRange, Cell
from uml_core.corpora.rows import HASH, Row, contains
from uml_core.store.corpus_store import CorpusStore, Settled
from uml_core.store.listing import ROWS_AT_ONCE, Listing, digest_of
from uml_core.store.parts import FACTS_KEY

NO_KEYS = np.empty(0, dtype=HASH)
FACTS = {"dim": 1}
# A corpus is what each of some ids holds: the same id with another text is a changed row.
text = st.text(st.characters())  # with half surrogate pairs, as in the names of files
members = st.none() | st.builds(ByteRange, st.integers(0), st.integers(0))
members |= st.builds(Cell, st.integers(0), st.integers(0), text)
corpora = st.dictionaries(st.integers(0, 30), st.integers(0, 2), max_size=20)


class Crash(BaseException):
    """The writer dies here."""


class DyingStore(CorpusStore):
    """A store whose writer dies at its n-th file operation."""

    def __init__(self, *arguments: str, operations: int) -> None:
        super().__init__(*arguments)
        self._left = operations

    def _spend(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise Crash

    def _write_file(self, content: Any, name: str) -> None:
        self._spend()
        super()._write_file(content, name)
        self._spend()

    def _delete(self, info: Any) -> None:
        self._spend()
        super()._delete(info)


def rows_of(corpus: dict[int, int]) -> list[Row]:
    return [Row(f"id-{row_id}", "a", "train", text=f"{text}") for row_id, text in sorted(corpus.items())]


def embed(store: CorpusStore, rows: Sequence[Row], part_rows: int) -> tuple[Listing, Settled]:
    """Do what `pipelines.embed` does, without Ray: a row's embedding is its text, and text 2 cannot be read."""
    listing = Listing(rows, store.stored_keys(), part_rows)
    listing.misses()
    for part in listing.missing:
        good = [row for row in part if row.text != "2"]
        values = np.array([[float(row.text or 0)] for row in good], dtype=np.float32).reshape(-1, 1)
        store.write_part(good, values, [(row, "unreadable") for row in part if row.text == "2"], dim=1)
    settled = store.settle(store.footers(), listing.keys)
    store.publish(settled.parts, FACTS)
    return listing, settled


def on_disk(store: CorpusStore) -> dict[str, float]:
    """Return what the parts on disk hold, read by their names as a stranger would; each id once."""
    folder = Path(store.directory)
    tables = [pq.read_table(file) for file in folder.glob("part-*.parquet")]
    pairs = [pair for table in tables for pair in zip(table["id"].to_pylist(), table["embedding"], strict=True)]
    counts = Counter(name for name, _ in pairs)
    assert set(counts.values()) <= {1}
    assert {file.name for file in folder.glob("part-*")} == set(
        json.loads((folder / "manifest.json").read_text())["parts"]
    )
    return {name: vector.as_py()[0] for name, vector in pairs}


def check(store: CorpusStore, corpus: dict[int, int]) -> None:
    assert on_disk(store) == {f"id-{row_id}": float(text) for row_id, text in corpus.items() if text != 2}
    rejected = Counter(row.id for row in store.rejected_rows())
    assert rejected == Counter(f"id-{row_id}" for row_id, text in corpus.items() if text == 2)


@given(st.lists(corpora, min_size=1, max_size=3), st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_a_changing_corpus_is_stored_exactly_once(versions: list[dict[int, int]], part_rows: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        store = CorpusStore(directory, "names", "f" * 12)
        before: dict[int, int] = {}
        for corpus in versions:
            listing, settled = embed(store, rows_of(corpus), part_rows)
            check(store, corpus)
            changed = {row_id for row_id in before.keys() & corpus.keys() if before[row_id] != corpus[row_id]}
            assert listing.num_missing == len(corpus.keys() - before.keys()) + len(changed)
            assert listing.came_again(settled.stale_ids) == len(changed)
            assert len(settled.stale_ids) == len(changed) + len(before.keys() - corpus.keys())
            manifest = store.read_manifest()
            assert manifest is not None
            assert store.holds_exactly(manifest, listing.keys)
            before = corpus


@given(corpora, corpora, st.integers(1, 6), st.lists(st.integers(0, 25), max_size=3))
@settings(max_examples=40, deadline=None)
def test_a_writer_that_dies_anywhere_loses_and_doubles_nothing(
    first: dict[int, int], second: dict[int, int], part_rows: int, deaths: list[int]
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        place = (directory, "names", "f" * 12)
        embed(CorpusStore(*place), rows_of(first), part_rows)
        for operations in deaths:
            try:
                embed(DyingStore(*place, operations=operations), rows_of(second), part_rows)
            except Crash:
                manifest = CorpusStore(*place).read_manifest()
                assert manifest is not None
                assert all((Path(directory) / "names" / place[2] / part).exists() for part in manifest["parts"]), (
                    "readers see a whole store at any moment"
                )
        embed(CorpusStore(*place), rows_of(second), part_rows)
        check(CorpusStore(*place), second)


def as_written_before(store: CorpusStore) -> None:
    """Make of a store what an earlier version wrote: 64-bit keys in its parts, and their digest."""
    keys = np.empty(0, dtype=np.uint64)
    for file in Path(store.directory).glob("part-*"):
        table = pq.read_table(file)
        facts = json.loads(table.schema.metadata[FACTS_KEY])
        halves = np.frombuffer(base64.b64decode(facts.pop("row_keys")), dtype=np.uint64)[::2]
        facts["keys"] = base64.b64encode(halves.tobytes()).decode()
        pq.write_table(table.replace_schema_metadata({FACTS_KEY: json.dumps(facts)}), file)
        keys = np.concatenate([keys, halves])
    manifest = Path(store.directory) / "manifest.json"
    total, mixed = int(np.add.reduce(keys, dtype=np.uint64)), int(np.bitwise_xor.reduce(keys))
    digest = f"{len(keys)}-{total:016x}{mixed:016x}"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"rows_digest": digest}))


def test_a_store_by_an_earlier_version_with_keys_of_64_bits_is_up_to_date_and_goes_on(tmp_path: Path) -> None:
    store, corpus = CorpusStore(str(tmp_path), "names", "f" * 12), {row: row % 3 for row in range(10)}
    embed(store, rows_of(corpus), 3)
    as_written_before(store)
    listing = Listing(rows_of(corpus), store.stored_keys(), 3)
    assert not listing.misses()
    assert store.holds_exactly(store.finished_manifest(), listing.keys)
    corpus |= {0: 1, 10: 0, 11: 2}
    del corpus[4]
    listing, settled = embed(store, rows_of(corpus), 3)
    assert listing.num_missing == 3
    assert sorted(settled.stale_ids) == ["id-0", "id-4"]
    check(store, corpus)
    listing = Listing(rows_of(corpus), store.stored_keys(), 3)
    assert not listing.misses()
    assert store.holds_exactly(store.finished_manifest(), listing.keys)


def test_finished_parts_are_not_written_again(tmp_path: Path) -> None:
    store = CorpusStore(str(tmp_path), "names", "f" * 12)
    embed(store, rows_of(dict.fromkeys(range(10), 0)), 3)
    times = {file.name: file.stat().st_mtime_ns for file in Path(store.directory).glob("part-*")}
    listing, _ = embed(store, rows_of(dict.fromkeys(range(13), 0)), 3)
    after = {file.name: file.stat().st_mtime_ns for file in Path(store.directory).glob("part-*")}
    assert listing.num_missing == 3
    assert times.items() <= after.items()


def test_a_damaged_part_is_embedded_again(tmp_path: Path) -> None:
    store = CorpusStore(str(tmp_path), "names", "f" * 12)
    corpus = dict.fromkeys(range(6), 1)
    embed(store, rows_of(corpus), 3)
    next(Path(store.directory).glob("part-*")).write_bytes(b"PAR1 and no more")
    listing, _ = embed(store, rows_of(corpus), 3)
    assert listing.num_missing == 3
    check(store, corpus)


def test_a_row_that_is_listed_twice_is_one_row() -> None:
    row = rows_of({1: 0})[0]
    listing = Listing([row, row, row], NO_KEYS, 2)
    assert list(listing.missing) == [[row]]
    assert len(listing.keys) == 1


HASHES = st.sets(st.integers(0, 5) | st.integers(0, 2**128 - 1)).map(
    lambda numbers: {number.to_bytes(16, "big") for number in numbers}
)


@given(HASHES, HASHES)
def test_membership_and_digest(first: set[bytes], second: set[bytes]) -> None:
    members = np.array(sorted(first), dtype=HASH)
    asked = np.array(list(second), dtype=HASH)
    assert contains(members, asked).tolist() == [key in first for key in second]
    assert (digest_of(members) == digest_of(asked)) == (first == second)
    assert digest_of(members) == digest_of(members[::-1])


def test_asking_whether_a_row_is_missing_loses_none_and_lists_no_further_than_the_first_part() -> None:
    rows, seen = rows_of(dict.fromkeys(range(5000), 0)), []
    listing = Listing((seen.append(row) or row for row in rows), NO_KEYS, 2)  # type: ignore[func-returns-value]
    assert listing.misses()
    assert len(seen) <= ROWS_AT_ONCE
    assert listing.misses(), "asked again"
    assert listing.misses(more_than=99)
    assert len(seen) <= ROWS_AT_ONCE
    assert not listing.misses(more_than=5000)
    assert [row for part in listing.missing for row in part] == rows
    stored = Listing(rows, np.sort(listing.keys), 2)
    assert not stored.misses()
    assert (len(stored.keys), stored.num_missing) == (5000, 0)


@given(
    st.builds(Row, text, text | st.none(), text, text | st.none(), text | st.none(), members, text, text | st.none())
)
def test_a_row_comes_back_from_the_spool_as_it_was(row: Row) -> None:
    assert Row.from_json(json.loads(json.dumps(row.as_json()))) == row


@pytest.mark.parametrize("part_rows", [1, 2, 5])
def test_parts_are_full_but_for_the_last(part_rows: int) -> None:
    rows = rows_of(dict.fromkeys(range(7), 0))
    parts = list(Listing(iter(rows), NO_KEYS, part_rows).missing)
    assert [row for part in parts for row in part] == rows
    assert {len(part) for part in parts[:-1]} <= {part_rows}
