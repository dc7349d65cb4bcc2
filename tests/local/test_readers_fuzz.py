"""Whatever a corpus holds, a reader gives rows in one order, ids unique among the usable ones, or says one line."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.corpus_rows import list_rows
from uml_core.config import CorpusConfig
from uml_core.corpora.readers import stream_rows
from uml_core.corpora.ready.adopt import stream_ready
from uml_core.encoders import RowError
from uml_core.errors import InputError

FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
BYTES = st.binary(max_size=300)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
CELLS = JSON | st.sampled_from(["a", "b", "../x", "a.png", "train", "\ud800", "\0", ""])
RECORDS = st.lists(
    st.dictionaries(st.sampled_from(["id", "label", "split", "text", "path", "bytes"]), CELLS) | CELLS, max_size=8
)


def assert_contract(corpus: CorpusConfig) -> None:
    """Two listings agree, usable ids are unique and storable, and every row is read or says why not."""
    rows, refusal = listed_or_refused(lambda: list_rows("x", corpus))
    if refusal is not None:
        assert "\n" not in refusal
        return
    assert (rows, None) == listed_or_refused(lambda: list_rows("x", corpus))
    usable = [row.id for row in rows if row.fault is None]
    assert len(usable) == len(set(usable))
    for row in rows:
        pa.array([row.id, row.label, row.split, row.text, row.fault], pa.string())
        assert len(row.key) == 16
        if row.fault is not None:
            with pytest.raises(RowError):
                row.read()
            continue
        with contextlib.suppress(RowError):
            assert row.read()


def listed_or_refused(listing: Callable[[], list[Any]]) -> tuple[list[Any], str | None]:
    """Return what a reader lists, or the line with which it refuses; nothing else may be raised."""
    try:
        return listing(), None
    except InputError as error:
        return [], str(error)


def config(path: Path, format: str, modality: str = "text") -> CorpusConfig:
    return CorpusConfig.model_validate({"modality": modality, "format": format, "path": str(path)})


@FUZZ
@given(
    BYTES | RECORDS.map(lambda records: "\n".join(map(json.dumps, records)).encode()),
    st.sampled_from(["text", "image"]),
)
def test_jsonl(tmp_path: Path, content: bytes, modality: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    assert_contract(config(tmp_path / "a.jsonl", "table", modality))


CSV_BYTES = st.lists(st.sampled_from([b",", b'"', b"\n", b"\r", b"a", b"../b", b"\xff", b"\0", b" "]), max_size=40).map(
    b"".join
)


@FUZZ
@given(
    BYTES | CSV_BYTES.map(lambda body: b"text,label,id\n" + body) | CSV_BYTES.map(lambda body: b"path,split\n" + body)
)
def test_csv(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    assert_contract(config(tmp_path / "a.csv", "table"))


@FUZZ
@given(BYTES | JSON.map(lambda tree: json.dumps(tree).encode()) | st.integers(1, 5000).map(lambda depth: b"[" * depth))
def test_descriptors(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    assert_contract(config(tmp_path / "a.json", "descriptors"))


PARQUET_COLUMNS = {
    "id": st.integers(0, 5) | st.none(),
    "label": st.text(max_size=2) | st.none(),
    "split": st.binary(max_size=3) | st.none(),
    "text": st.text(max_size=4) | st.none(),
    "path": st.sampled_from(["a", "../b", "", "/c", None]),
    "image": st.binary(max_size=5) | st.none(),
    "embedding": st.lists(st.floats(width=32) | st.none(), max_size=3) | st.none(),
}


@st.composite
def parquet_bytes(draw: st.DrawFn) -> bytes:
    """A Parquet file of some columns, one byte of which may be damaged."""
    names = draw(st.lists(st.sampled_from(sorted(PARQUET_COLUMNS)), min_size=1, unique=True))
    count = draw(st.integers(0, 6))
    columns = {name: draw(st.lists(PARQUET_COLUMNS[name], min_size=count, max_size=count)) for name in names}
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, row_group_size=2)
    content = bytearray(sink.getvalue())
    for place in draw(st.lists(st.integers(0, len(content) - 1), max_size=1)):
        content[place] = draw(st.integers(0, 255))
    return bytes(content)


@FUZZ
@given(parquet_bytes(), st.sampled_from(["text", "image"]))
def test_parquet(tmp_path: Path, content: bytes, modality: str) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    assert_contract(config(tmp_path / "a.parquet", "table", modality))


def npy_bytes(array: np.ndarray[Any, Any]) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()


ARRAYS = st.lists(st.lists(st.floats(), min_size=2, max_size=2), max_size=4).map(
    lambda rows: npy_bytes(np.array(rows, dtype=np.float64))
)


@FUZZ
@given(BYTES | ARRAYS, BYTES | RECORDS.map(lambda records: json.dumps(records).encode()), parquet_bytes())
def test_ready_embeddings(tmp_path: Path, array: bytes, metadata: bytes, parquet: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(array)
    (tmp_path / "a.json").write_bytes(metadata)
    (tmp_path / "b.parquet").write_bytes(parquet)
    for name in ("a.npy", "b.parquet"):
        corpus = config(tmp_path / name, "embeddings", "vector")
        chunks, refusal = listed_or_refused(lambda corpus=corpus: list(stream_ready("x", corpus, chunk_rows=2)))
        if refusal is not None:
            assert "\n" not in refusal
            continue
        ids = [row.id for chunk in chunks for row in chunk.rows]
        assert len(ids) == len(set(ids))
        assert len({chunk.embeddings.shape[1] for chunk in chunks}) == 1
        for chunk in chunks:
            assert len(chunk.rows) == len(chunk.embeddings)
            assert np.isfinite(chunk.embeddings).all()


@st.composite
def tar_bytes(draw: st.DrawFn) -> bytes:
    """A tar of some members, cut or with some bytes damaged."""
    sink = io.BytesIO()
    with tarfile.open(
        fileobj=sink, mode="w", format=draw(st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
    ) as archive:
        for name in draw(
            st.lists(st.sampled_from(["1.txt", "1.cls", "2.txt", "2.json", "é" * 80 + ".txt", ".x", "d/3.txt"]))
        ):
            info = tarfile.TarInfo(name)
            body = draw(st.sampled_from([b"", b"x", b'{"label": 1}', b'{"id": "1"}', b"\xff"]))
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    content = bytearray(sink.getvalue()[: draw(st.integers(0, 12)) * 512 + draw(st.sampled_from([0, 7]))])
    for place in draw(st.lists(st.integers(0, max(0, len(content) - 1)), max_size=3)):
        content[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
    return bytes(content)


@FUZZ
@given(BYTES | tar_bytes())
def test_shards(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    assert_contract(config(tmp_path / "a.tar", "webdataset"))


NAMES = st.sampled_from(["train", "cat", "dog", "a.txt", "b.md", "c.png", ".hidden", "é.txt", "\udcff.txt", "x y.txt"])
KINDS: dict[str, Callable[[Path, Path], None]] = {
    "file": lambda place, root: place.write_text("x"),  # type: ignore[dict-item,return-value]
    "empty": lambda place, root: place.touch(),
    "link up": lambda place, root: place.symlink_to(".."),
    "link out": lambda place, root: place.symlink_to("/etc"),
    "link to nothing": lambda place, root: place.symlink_to("nothing"),
}


@FUZZ
@given(st.lists(st.tuples(st.lists(NAMES, min_size=1, max_size=5), st.sampled_from(sorted(KINDS))), max_size=8))
def test_folders(tmp_path: Path, entries: list[tuple[list[str], str]]) -> None:
    root = tmp_path / "corpus"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for parts, kind in entries:
        place = root.joinpath(*parts)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            KINDS[kind](place, root)
        except OSError:
            continue  # a name is taken, or a link is in the way
    assert_contract(config(root, "folder"))


@pytest.mark.parametrize(("suffix", "count"), [("jsonl", 20_000), ("csv", 8_000), ("parquet", 8_000)])
def test_memory_does_not_grow_with_a_table(tmp_path: Path, suffix: str, count: int) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        pq.write_table(
            pa.table({"text": [f"sentence number {index}" for index in range(count)]}), path, row_group_size=8192
        )
    else:
        with path.open("w") as file:
            file.write("text\n" if suffix == "csv" else "")
            file.writelines(
                f"sentence number {index}\n" if suffix == "csv" else f'{{"text": "sentence number {index}"}}\n'
                for index in range(count)
            )
    tracemalloc.start()
    try:
        listed = sum(1 for _ in stream_rows("x", config(path, "table")))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert listed == count
    assert peak < 2e6  # 8 bytes of hash a row and some thousand rows at once; a list of the rows takes 400 bytes a row
