"""The store: parts, rejected rows, manifest, leftovers, one writer at a time, fingerprints."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from uml_core.corpora.rows import Row
from uml_core.errors import InputError
from uml_core.files import lease
from uml_core.store.corpus_store import CorpusStore, open_filesystem
from uml_core.store.listing import Listing
from uml_core.store.parts import RejectedRow, keys_of, part_name
from uml_core.store.sequence_table import load_sequences

FACTS = {"encoder": {}, "dim": 2, "dtype": "float32", "wall_s": 1.0, "rows_per_s": 1.0, "stage_s": {}}


def rows(count: int, start: int = 0) -> list[Row]:
    return [Row(f"id-{index}", "ab"[index % 2], "train", text="x") for index in range(start, start + count)]


def store(directory: Path, fingerprint: str = "f" * 12) -> CorpusStore:
    return CorpusStore(str(directory), "names", fingerprint)


def fill(target: CorpusStore, count: int = 5) -> list[str]:
    values = np.array([[float(index), 1.0] for index in range(count)], dtype=np.float32)
    return [
        target.write_part(rows(count)[start : start + 2], values[start : start + 2], [], dim=2)
        for start in range(0, count, 2)
    ]


@pytest.mark.parametrize("change", [{"label": "z"}, {"split": "val"}, {"text": "y"}, {"stamp": "9"}, {"id": "n"}])
def test_a_parts_name_follows_its_rows(change: dict[str, str]) -> None:
    first = rows(3)
    changed = [*first[:2], replace(first[2], **change)]
    assert part_name(keys_of(first)) == part_name(keys_of(first[::-1]))
    assert part_name(keys_of(first)) != part_name(keys_of(changed))


def test_round_trip_and_schema(tmp_path: Path) -> None:
    names = store(tmp_path)
    parts = fill(names)
    manifest = names.publish(names.footers(), FACTS)
    table = names.load()
    assert sorted(table.embeddings[:, 0].tolist()) == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert table.embeddings.dtype == np.float32
    labels = {table.label_names[code] for code in table.label_codes[table.embeddings[:, 0] % 2 == 0]}
    assert labels == {"a"}
    assert (manifest["rows"], manifest["rejected_rows"]) == (5, 0)
    assert manifest["rows_per_class"] == {"train": {"a": 3, "b": 2}}
    schema = pq.read_schema(tmp_path / "names" / ("f" * 12) / parts[0])
    assert schema.field("embedding").type == pa.list_(pa.float32(), 2)
    assert schema.names == ["id", "label", "split", "embedding"]


def test_sequences_of_tokens_have_a_column_of_their_own(tmp_path: Path) -> None:
    names = store(tmp_path)
    sequences = [np.ones((3, 2), dtype=np.float16), np.zeros((0, 2), dtype=np.float16), np.full((1, 2), 7, np.float16)]
    name = names.write_part(rows(3), sequences, [], dim=2)
    table = pq.read_table(tmp_path / "names" / ("f" * 12) / name)
    assert table.schema.field("tokens").type == pa.list_(pa.list_(pa.float16(), 2))
    assert [len(tokens) for tokens in table["tokens"].to_pylist()] == [3, 0, 1]
    assert table["tokens"].to_pylist()[2] == [[7.0, 7.0]]
    names.write_part([], [], [(rows(1, start=9)[0], "damaged")], dim=2)
    names.publish(names.footers(), {**FACTS, "tokens": True})
    with pytest.raises(InputError, match="sequences of tokens"):
        names.load()


@pytest.mark.parametrize("tokens", [False, True])
def test_the_order_of_rows_is_that_of_their_ids_whatever_the_parts(tmp_path: Path, *, tokens: bool) -> None:
    found = [
        replace(row, id=name) for row, name in zip(rows(5), ["b/é.png", "b/10.png", "a/9.png", "Z", "b/z"], strict=True)
    ]
    read = []
    for number, order in enumerate([[0, 1, 2, 3, 4], [4, 2, 0, 3, 1]]):
        names = store(tmp_path / str(number))
        for part in (order[:2], order[2:]):
            values = np.array([[index, 1] for index in part], dtype=np.float32)
            sequences = [np.repeat(row[None], 1 + int(row[0]), axis=0) for row in values]
            names.write_part([found[index] for index in part], sequences if tokens else values, [], dim=2)
        names.publish(names.footers(), {**FACTS, "tokens": tokens})
        assert names.load_ids() == ("Z", "a/9.png", "b/10.png", "b/z", "b/é.png")
        if tokens:
            sequences_read = load_sequences(names)
            assert sequences_read.lengths.tolist() == [4, 3, 2, 5, 1]
            firsts, labels = sequences_read.tokens[sequences_read.starts], sequences_read.label_codes
        else:
            table = names.load()
            firsts, labels = table.embeddings, table.label_codes
        assert firsts[:, 0].tolist() == [3.0, 2.0, 1.0, 4.0, 0.0]
        read.append(labels.tolist())
    assert read[0] == read[1]


def test_rejected_rows_are_kept_with_their_reason(tmp_path: Path) -> None:
    names = store(tmp_path)
    names.write_part(rows(2), np.ones((2, 2), dtype=np.float16), [(rows(3)[2], "empty text")], dim=2)
    manifest = names.publish(names.footers(), FACTS)
    assert (manifest["rows"], manifest["rejected_rows"]) == (2, 1)
    assert names.rejected_rows() == [RejectedRow("id-2", "a", "train", "empty text")]
    assert len(names.load().embeddings) == 2


def test_a_part_may_be_all_rejected(tmp_path: Path) -> None:
    names = store(tmp_path)
    names.write_part(rows(2), np.ones((2, 2), dtype=np.float32), [], dim=2)
    names.write_part([], np.empty((0, 2), np.float32), [(row, "damaged") for row in rows(2, start=2)], dim=2)
    names.publish(names.footers(), FACTS)
    assert len(names.load().embeddings) == 2
    assert len(names.rejected_rows()) == 2


def test_only_the_manifests_parts_are_data(tmp_path: Path) -> None:
    names = store(tmp_path)
    parts = fill(names)
    folder = tmp_path / "names" / ("f" * 12)
    names.publish([footer for footer in names.footers() if footer.name != parts[2]], FACTS)
    assert len(names.load().embeddings) == 4
    assert not (folder / parts[2]).exists(), "parts that the manifest leaves out go"


def test_a_writer_removes_what_killed_ones_left_half_written(tmp_path: Path) -> None:
    names = store(tmp_path)
    fill(names)
    folder = tmp_path / "names" / ("f" * 12)
    (folder / "tmp-killed").write_bytes(b"half a file")
    (folder / "tmp-rows-killed").mkdir()
    with names.writing(pytest.fail):
        assert not list(folder.glob("*tmp-*"))
        spool = names.spool()
        assert [spool.read(name) for name in spool.write(iter([rows(2), rows(1)]))] == [rows(2), rows(1)]
    assert not list(folder.glob("*tmp-*"))


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    waiting, order = threading.Event(), []

    def second() -> None:
        with store(tmp_path).writing(waiting.set):
            order.append("second")

    thread = threading.Thread(target=second)
    with store(tmp_path).writing(pytest.fail):
        thread.start()
        assert waiting.wait(10)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_a_store_on_s3(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SETTLE_S", 0.05)
    names = CorpusStore(f"{s3_bucket}/store", "names", "f" * 12)
    assert names.read_manifest() is None
    for total in (5, 3):
        with names.writing(pytest.fail):
            spool, listing = names.spool(), Listing(rows(total), names.stored_keys(), 2)
            for part in spool.write(listing.missing):
                new = spool.read(part)
                names.write_part(new, np.ones((len(new), 2), dtype=np.float32), [], dim=2)
            manifest = names.publish(names.settle(names.footers(), listing.keys).parts, FACTS)
        assert manifest["rows"] == len(names.load().embeddings) == total
        assert names.holds_exactly(manifest, listing.keys)
    with pytest.raises(InputError, match=r"found ffffffffffff"):
        CorpusStore(f"{s3_bucket}/store", "names", "0" * 12).load()


def test_unfinished_store_is_not_read_and_other_encoders_are_named(tmp_path: Path) -> None:
    fill(store(tmp_path))
    with pytest.raises(InputError, match=r"run python -m pipelines.embed"):
        store(tmp_path).load()
    with pytest.raises(InputError, match=r"embedded by another encoder or setting .found ffffffffffff"):
        store(tmp_path, "0" * 12).load()


def test_nan_embeddings_are_refused(tmp_path: Path) -> None:
    names = store(tmp_path)
    names.write_part(rows(2), np.array([[1, np.nan], [1, 1]], dtype=np.float32), [], dim=2)
    names.publish(names.footers(), FACTS)
    with pytest.raises(InputError, match="1 embeddings with NaN"):
        names.load()


def test_unknown_scheme() -> None:
    with pytest.raises(InputError, match="store is nope://x"):
        open_filesystem("nope://x")
