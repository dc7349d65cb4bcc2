"""A corpus in slices: each row is listed by one of them, a listing that is begun again is the same, ids are unique."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import write_picture_corpora
from tests.unit.test_readers_shards import samples, write_shard
from uml_core.config import CorpusConfig
from uml_core.corpora.readers import slices, stream_rows, table_files
from uml_core.corpora.readers.base import CorpusSource, RowChecks, Slice
from uml_core.corpora.readers.slices import FEWEST, MOST, files_digest, files_in_groups, slices_for
from uml_core.corpora.rows import Row, hashes_of
from uml_core.errors import InputError
from uml_core.files.paths import Entry
from uml_core.store.listing import Listing
from uml_core.store.sliced_store import RANGES, SMALL, Listed, SlicedStore, repeated_id

COUNT = 3


def corpora(folder: Path) -> list[CorpusConfig]:
    write_picture_corpora(folder)
    (folder / "classes" / "cat").mkdir(parents=True)
    (folder / "classes" / "cat" / "stray").mkdir()
    (folder / "tables").mkdir()
    for piece in range(8):
        write_shard(folder / "shards" / f"{piece}.tar", samples(10 * piece, 3))
        (folder / "classes" / f"{piece}").mkdir()
        for place in (f"{piece}/a.png", "cat/stray/b.png", f"odd-{piece}.png"):
            (folder / "classes" / place).write_bytes(b"")
        line = json.dumps({"text": f"piece {piece}"})
        (folder / "tables" / f"{piece}.jsonl").write_text(f"{line}\n{line}\n", encoding="utf-8")
    texts = [f"row {row}" for row in range(5)]
    pq.write_table(pa.table({"text": texts}), folder / "large.parquet", row_group_size=1)
    return [
        CorpusConfig.model_validate({"modality": modality, "format": layout, "path": str(folder / path)})
        for modality, layout, path in (
            ("image", "folder", "pictures"),
            ("image", "folder", "classes"),
            ("image", "webdataset", "shards"),
            ("text", "table", "tables"),
            ("text", "table", "large.parquet"),
        )
    ]


def test_slices_list_each_row_of_the_whole_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_files, "LARGE", 1)
    for corpus in corpora(tmp_path):
        in_groups = files_in_groups(CorpusSource("x", corpus))
        slices = [list(stream_rows("x", corpus, slice_of=Slice(index, COUNT, in_groups))) for index in range(COUNT)]
        whole = list(stream_rows("x", corpus))
        assert Counter(row for rows in slices for row in rows) == Counter(whole)
        assert sum(bool(rows) for rows in slices) > 1, corpus.path


def test_small_corpora_are_whole_and_large_ones_get_a_slice_for_four_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sources = [CorpusSource("x", corpus) for corpus in corpora(tmp_path)]
    assert [slices_for(source) for source in sources] == [1, 1, 1, 1, 1]
    for kind in FEWEST:
        monkeypatch.setitem(FEWEST, kind, 8)  # type: ignore[arg-type]
    pieces = [12, 9, 8, 8]  # classes in splits, classes, shards, tables
    assert [slices_for(source) for source in sources[:4]] == [count // 4 for count in pieces]
    monkeypatch.setattr(table_files, "LARGE", 1)
    caplog.clear()
    assert slices_for(sources[-1]) == 5, "a row group each"
    assert not caplog.records
    slices_for(sources[-2])
    assert "7.jsonl is large, and listed by one process; split it, or write it as Parquet" in caplog.text
    assert MOST == 1024
    list_folder = slices.list_folder

    def without_train(folder: str, root: str) -> Iterator[Entry]:
        if folder.endswith("/train"):
            raise PermissionError(13, "Permission denied", folder)
        return list_folder(folder, root)

    monkeypatch.setattr(slices, "list_folder", without_train)
    assert slices_for(sources[0]) == 2, "the reader says what cannot be listed"


def test_files_have_another_digest_once_one_changes_and_folders_have_none(tmp_path: Path) -> None:
    for corpus in corpora(tmp_path):
        source = CorpusSource("x", corpus)
        before = files_digest(source)
        assert files_digest(CorpusSource("y", corpus)) == before
        assert (before is None) == (corpus.format == "folder")
        if before is not None:
            assert files_digest(CorpusSource("x", corpus.model_copy(update={"split": "test"}))) != before
            path = Path(str(corpus.path))
            file = path if path.is_file() else sorted(path.iterdir())[-1]
            file.write_bytes(file.read_bytes() + b"\n")
            assert files_digest(source) != before


def rows(count: int) -> list[Row]:
    return [Row(f"id-{index}", "a", "train", text=f"{index}") for index in range(count)]


def listed(given: list[Row], stored: np.ndarray) -> Listed:
    checks = RowChecks()
    listing = Listing(checks.apply(given), stored, 2)
    list(listing.missing)
    return Listed(listing.keys, checks.ids, listing.missing_ids, listing.has_files)


def test_a_listing_that_is_begun_again_compares_with_what_was_stored_the_first_time(tmp_path: Path) -> None:
    store = SlicedStore(str(tmp_path), "names", "f" * 12).slice(0)
    given = rows(4)
    store.write_part(given[:2], np.zeros((2, 1), np.float32), [], dim=1)
    first = store.begin("run")
    store.write_part(given[2:], np.zeros((2, 1), np.float32), [], dim=1)
    assert len(first) == 2
    assert np.array_equal(store.begin("run"), first)
    assert len(store.begin("another")) == 4
    store.leave("another", listed(given, first))
    manifest = store.settle_listed("another", 4)
    assert (manifest["rows"], len(manifest["parts"])) == (4, 2)
    assert not list(Path(store.directory).glob(".tmp-*"))
    with pytest.raises(RuntimeError, match="not listed to its end; run it again"):
        store.settle_listed("another", 4)


def test_small_parts_that_runs_leave_are_joined(tmp_path: Path) -> None:
    store = SlicedStore(str(tmp_path), "names", "f" * 12).slice(0)
    for count in range(2, 2 + SMALL):
        given, run = rows(count), f"run-{count}"
        missing = listed(given, store.begin(run))
        bad = [(given[0], "damaged")] if count == 2 else []
        store.write_part(given[-1:], np.full((1, 1), count, np.float32), bad, dim=1)
        store.leave(run, missing)
        manifest = store.settle_listed(run, SMALL * SMALL)
        store.drop_settled()
        assert len(store.part_names()) == len(manifest["parts"]) == (1 if count == 1 + SMALL else count - 1)
    assert (manifest["rows"], [row.id for row in store.rejected_rows()]) == (SMALL, ["id-0"])
    ids, vectors = store.read_part(manifest["parts"][0], ["id", "embedding"]).columns
    stored = dict(zip(ids.to_pylist(), vectors.to_pylist(), strict=True))
    assert stored == {f"id-{row}": [row + 1] for row in range(1, 1 + SMALL)}


def test_a_store_that_another_run_began_meanwhile_is_not_begun_otherwise(tmp_path: Path) -> None:
    store = SlicedStore(str(tmp_path), "names", "f" * 12)
    store.begin_slices(COUNT)
    store.begin_slices(COUNT)
    with pytest.raises(InputError, match="not in 2 slices; run the same line again"):
        store.begin_slices(2)


def test_an_id_in_two_slices_is_found_in_its_range_alone(tmp_path: Path) -> None:
    whole = SlicedStore(str(tmp_path), "names", "f" * 12)
    stores = [whole.slice(index) for index in range(COUNT)]
    for index, store in enumerate(stores):
        store.leave("run", listed([Row(f"{index}-{row}", "a", "train") for row in range(100)], store.begin("run")))
    parts = [len(stores[0].ids_in("run", part)) for part in range(RANGES)]
    assert sum(parts) == 100
    assert max(parts) < 10
    assert [repeated_id(stores, "run", part) for part in range(RANGES)] == [None] * RANGES
    stores[2].leave("run", listed([Row("0-7", "b", "train")], stores[2].begin("run")))
    found = [each for each in (repeated_id(stores, "run", part) for part in range(RANGES)) if each is not None]
    assert found == [(0, 2, hashes_of(["0-7"])[0])]
