"""The store: parts, rejected rows, manifest, leftovers, fingerprints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uml_core.corpora.rows import Row
from uml_core.errors import InputError
from uml_core.store import CorpusStore, RejectedRow, open_filesystem, plan_parts

FACTS = {"encoder": {}, "dim": 2, "dtype": "float32", "wall_s": 1.0, "rows_per_s": 1.0, "stage_s": {}}


def rows(count: int, start: int = 0) -> list[Row]:
    return [Row(f"id-{index}", "ab"[index % 2], "train", text="x") for index in range(start, start + count)]


def store(directory: Path, fingerprint: str = "f" * 12) -> CorpusStore:
    return CorpusStore(str(directory), "names", fingerprint)


def fill(target: CorpusStore, count: int = 5) -> list[str]:
    parts = plan_parts(rows(count), 2)
    for part in parts:
        values = np.array([[float(row.id[3:]), 1.0] for row in part.rows], dtype=np.float32)
        target.write_part(part.key, part.rows, values, [])
    return [part.key for part in parts]


@given(st.integers(0, 30), st.integers(1, 7))
def test_parts_hold_every_row_once(count: int, part_rows: int) -> None:
    parts = plan_parts(rows(count), part_rows)
    assert [row for part in parts for row in part.rows] == rows(count)
    assert len({part.key for part in parts}) == len(parts)
    assert all(len(part.rows) <= part_rows for part in parts)


@pytest.mark.parametrize("change", [{"label": "z"}, {"split": "val"}, {"text": "y"}, {"stamp": "9"}, {"id": "n"}])
def test_a_parts_key_follows_its_rows(change: dict[str, str]) -> None:
    first = rows(3)
    changed = [*first[:2], replace(first[2], **change)]
    before, after = plan_parts(first, 2), plan_parts(changed, 2)
    assert before[0].key == after[0].key
    assert before[1].key != after[1].key


def test_round_trip_and_schema(tmp_path: Path) -> None:
    names = store(tmp_path)
    keys = fill(names)
    manifest = names.finalise(keys, FACTS)
    table = names.load()
    assert sorted(table.embeddings[:, 0].tolist()) == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert table.embeddings.dtype == np.float32
    assert [table.label_names[code] for code in table.label_codes] == ["a", "b", "a", "b", "a"]
    assert (manifest["rows"], manifest["rejected_rows"]) == (5, 0)
    schema = pq.read_schema(tmp_path / "names" / ("f" * 12) / f"part-{keys[0]}.parquet")
    assert schema.field("embedding").type == pa.list_(pa.float32(), 2)
    assert schema.names == ["id", "label", "split", "embedding"]


def test_rejected_rows_are_kept_with_their_reason(tmp_path: Path) -> None:
    names = store(tmp_path)
    part = plan_parts(rows(3), 4)[0]
    bad = RejectedRow("id-2", "a", "train", "empty text")
    names.write_part(part.key, part.rows[:2], np.ones((2, 2), dtype=np.float16), [bad])
    assert names.rejected_in([part.key]).total_rows == 3
    assert names.finalise([part.key], FACTS)["rejected_rows"] == 1
    assert names.rejected_rows() == [bad]
    assert len(names.load().embeddings) == 2


def test_a_part_may_be_all_rejected(tmp_path: Path) -> None:
    names = store(tmp_path)
    first, second = plan_parts(rows(4), 2)
    names.write_part(first.key, first.rows, np.ones((2, 2), dtype=np.float32), [])
    bad = [RejectedRow(row.id, row.label, row.split, "damaged") for row in second.rows]
    names.write_part(second.key, [], np.empty((0, 2), dtype=np.float32), bad)
    names.finalise([first.key, second.key], FACTS)
    assert len(names.load().embeddings) == 2
    assert len(names.rejected_rows()) == 2


def test_only_the_manifests_parts_are_data(tmp_path: Path) -> None:
    names = store(tmp_path)
    keys = fill(names)
    folder = tmp_path / "names" / ("f" * 12)
    (folder / "tmp-killed").write_bytes(b"half a file")
    names.finalise(keys[:2], FACTS)
    assert len(names.load().embeddings) == 4
    assert not (folder / f"part-{keys[2]}.parquet").exists(), "parts of older plans go"
    assert (folder / "tmp-killed").exists(), "another run may still be writing it"


def test_unfinished_store_is_not_read_and_other_encoders_are_named(tmp_path: Path) -> None:
    fill(store(tmp_path))
    with pytest.raises(InputError, match=r"run python -m pipelines.embed"):
        store(tmp_path).load()
    with pytest.raises(InputError, match=r"embedded by another encoder or setting .found ffffffffffff"):
        store(tmp_path, "0" * 12).load()


def test_nan_embeddings_are_refused(tmp_path: Path) -> None:
    names = store(tmp_path)
    part = plan_parts(rows(2), 2)[0]
    names.write_part(part.key, part.rows, np.array([[1, np.nan], [1, 1]], dtype=np.float32), [])
    names.finalise([part.key], FACTS)
    with pytest.raises(InputError, match="1 embeddings with NaN"):
        names.load()


def test_unknown_scheme() -> None:
    with pytest.raises(InputError, match="store is nope://x"):
        open_filesystem("nope://x")
