"""Ready embeddings: Parquet and .npy, in chunks, with their rows in order."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from uml_core.config import CorpusConfig
from uml_core.corpora.ready.adopt import ReadyRows, ready_identity, stream_ready
from uml_core.errors import InputError

MATRIX = np.arange(12, dtype=np.float64).reshape(6, 2)
LABELS = ["a", "b", None, "a", "b", "a"]


def corpus(path: Path, **changes: Any) -> CorpusConfig:
    tree = {"modality": "vector", "format": "embeddings", "path": str(path), **changes}
    return CorpusConfig.model_validate(tree)


def read_ready_embeddings(name: str, settings_: CorpusConfig) -> ReadyRows:
    (chunk,) = stream_ready(name, settings_)
    return chunk


def write_metadata(path: Path, suffix: str) -> None:
    records = [{"id": f"n{index}", "label": label, "split": "dev"} for index, label in enumerate(LABELS)]
    columns = {name: [record[name] for record in records] for name in records[0]}
    file = path.with_suffix(suffix.removesuffix("-columns"))
    if suffix == ".parquet":
        pq.write_table(pa.table(columns), file)
    elif suffix == ".csv":
        lines = [",".join(columns), *(",".join(value or "" for value in record.values()) for record in records)]
        file.write_text("\n".join(lines))
    elif suffix == ".jsonl":
        file.write_text("\n".join(map(json.dumps, records)))
    else:
        file.write_text(json.dumps(columns if suffix.endswith("columns") else records))


@pytest.mark.parametrize("dtype", ["float16", "float32", ">f8", "int64", "uint8"])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", ".json", ".json-columns"])
def test_an_array_with_its_metadata_beside_it(tmp_path: Path, suffix: str, dtype: str) -> None:
    np.save(tmp_path / "e.npy", MATRIX.astype(dtype))
    write_metadata(tmp_path / "e.npy", suffix)
    chunks = list(stream_ready("x", corpus(tmp_path / "e.npy"), chunk_rows=4))
    assert [len(chunk.rows) for chunk in chunks] == [4, 2]
    assert np.concatenate([chunk.embeddings for chunk in chunks]).tolist() == MATRIX.tolist()
    assert chunks[0].embeddings.dtype == np.float32
    found = [row for chunk in chunks for row in chunk.rows]
    assert [row.label for row in found] == LABELS
    assert {row.split for row in found} == {"val"}
    assert [row.id for row in found] == [f"n{index}" for index in range(6)]


def test_an_array_alone_and_in_several_files(tmp_path: Path) -> None:
    np.save(tmp_path / "b.npy", MATRIX[:2])
    np.save(tmp_path / "a.npy", MATRIX[2:])
    ready = read_ready_embeddings("x", corpus(tmp_path, split="test"))
    assert [row.id for row in ready.rows] == [
        *(f"a.npy/row-{index}" for index in range(4)),
        "b.npy/row-0",
        "b.npy/row-1",
    ]
    assert ready.embeddings.tolist() == [*MATRIX[2:].tolist(), *MATRIX[:2].tolist()]
    assert {row.split for row in ready.rows} == {"test"}


@pytest.mark.parametrize(
    ("array", "metadata", "part"),
    [
        (MATRIX, [{}] * 5, "has 6 rows, its metadata 5; one record a row"),
        (MATRIX, [{}] * 7, "has 6 rows, its metadata more; one record a row"),
        (MATRIX, {"label": ["a"], "id": []}, "with columns of one length"),
        (MATRIX, "x", "holds neither a list of objects nor"),
        (MATRIX[0], [{}] * 2, r"array of shape \(2,\) and type float64; expected \(rows, width\) of numbers"),
        (np.asfortranarray(MATRIX), [{}] * 6, "save it again with numpy.ascontiguousarray"),
        (np.array([["x"]]), [{}], "type <U1; expected"),
        (np.array([[{}]], dtype=object), [{}], "type object; expected"),
        (MATRIX[:0], [], "is empty"),
        (np.full((6, 2), np.nan), [{}] * 6, "no usable embedding: embedding with NaN or infinity"),
    ],
)
def test_arrays_that_are_refused(tmp_path: Path, array: Any, metadata: Any, part: str) -> None:
    np.save(tmp_path / "e.npy", array)
    (tmp_path / "e.json").write_text(json.dumps(metadata))
    with pytest.raises(InputError, match=part):
        read_ready_embeddings("x", corpus(tmp_path / "e.npy"))


def test_an_array_that_was_cut_short(tmp_path: Path) -> None:
    np.save(tmp_path / "e.npy", MATRIX)
    os.truncate(tmp_path / "e.npy", 128 + 90)
    with pytest.raises(InputError, match="ends within its 6 rows; it was cut short"):
        read_ready_embeddings("x", corpus(tmp_path / "e.npy"))


def test_rows_that_cannot_be_used_are_set_apart(tmp_path: Path) -> None:
    embeddings = [[1, 2], None, [], [1, 2, 3], [None, 1], [1e300, 1], [3, 4], [5, 6], [7, 8]]
    ids = ["a", "b", "c", "d", "e", "f", "a", "g", "h"]
    labels = ["x"] * 9
    pq.write_table(pa.table({"embedding": embeddings, "id": ids, "label": labels}), tmp_path / "e.parquet")
    ready = read_ready_embeddings("x", corpus(tmp_path / "e.parquet"))
    assert ready.embeddings.tolist() == [[1, 2], [5, 6], [7, 8]]
    assert [row.id for row in ready.rows] == ["a", "g", "h"]
    assert {row.id: row.fault for row in ready.rejected} == {
        "b": "no embedding",
        "c": "no embedding",
        "d": "embedding of width 3, the others have 2",
        "e": "embedding with NaN or infinity",
        "f": "embedding with NaN or infinity",
        "a": "id 'a' occurs again (row 6)",
    }


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.none() | st.lists(st.floats(width=32) | st.none(), min_size=2, max_size=3), min_size=1, max_size=12),
    st.integers(1, 5),
    st.sampled_from([pa.list_(pa.float32()), pa.large_list(pa.float64())]),
)
def test_every_row_once_in_order_whatever_the_chunks(
    tmp_path: Path, embeddings: list[list[float | None] | None], chunk_rows: int, kind: pa.DataType
) -> None:
    pq.write_table(pa.table({"embedding": pa.array(embeddings, kind)}), tmp_path / "e.parquet")
    settings_ = corpus(tmp_path / "e.parquet")
    if all(row is None for row in embeddings):
        with pytest.raises(InputError, match="no usable embedding"):
            list(stream_ready("x", settings_))
        return
    found: list[tuple[str, list[float]]] = []
    num_rejected, width = 0, 0
    try:
        for chunk in stream_ready("x", settings_, chunk_rows=chunk_rows):
            width = chunk.dim
            num_rejected += len(chunk.rejected)
            found += [(row.id, each.tolist()) for row, each in zip(chunk.rows, chunk.embeddings, strict=True)]
    except InputError:
        assert not found
        return
    expected = [
        (f"row-{index}", [float(value) for value in row if value is not None])
        for index, row in enumerate(embeddings)
        if row is not None and len(row) == width and all(value is not None and np.isfinite(value) for value in row)
    ]
    assert found == expected
    assert len(found) + num_rejected == len(embeddings)


def test_fixed_width_lists(tmp_path: Path) -> None:
    column = pa.array([[1.0, 2.0], [np.inf, 1.0], [3.0, 4.0]], pa.list_(pa.float32(), 2))
    pq.write_table(pa.table({"embedding": column}), tmp_path / "e.parquet")
    ready = read_ready_embeddings("x", corpus(tmp_path / "e.parquet"))
    assert ready.embeddings.tolist() == [[1, 2], [3, 4]]
    assert [(row.id, row.fault) for row in ready.rejected] == [("row-1", "embedding with NaN or infinity")]


def test_identity_follows_array_and_metadata(tmp_path: Path) -> None:
    np.save(tmp_path / "e.npy", MATRIX)
    write_metadata(tmp_path / "e.npy", ".csv")
    seen = [ready_identity("x", corpus(tmp_path / "e.npy"))]
    assert ready_identity("x", corpus(tmp_path / "e.npy")) == seen[0]
    for file in ("e.npy", "e.csv"):
        os.utime(tmp_path / file, ns=(1, 1))
        seen.append(ready_identity("x", corpus(tmp_path / "e.npy")))
    seen.append(ready_identity("x", corpus(tmp_path / "e.npy", split="test")))
    assert len({json.dumps(identity) for identity in seen}) == 4


def test_memory_does_not_grow_with_an_array(tmp_path: Path) -> None:
    np.save(tmp_path / "e.npy", np.ones((8000, 256), dtype=np.float32))  # 8 MB
    tracemalloc.start()
    try:
        rows = sum(len(c.rows) for c in stream_ready("x", corpus(tmp_path / "e.npy"), chunk_rows=256))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows == 8000
    assert peak < 3e6
