"""Corpora behind URIs: every format, on a filesystem in memory and on a local server that speaks S3."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.corpus_rows import list_inputs, list_rows
from uml_core.config import CorpusConfig
from uml_core.corpora.ready.adopt import stream_ready
from uml_core.corpora.rows import Row
from uml_core.encoders import RowError
from uml_core.errors import InputError
from uml_core.files.paths import base_name, join, parent, remote

Put = Callable[[str, bytes], None]


def shard_bytes() -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, body in {"1.png": b"one", "1.cls": b"cat", "2.png": b"two"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return sink.getvalue()


def parquet_bytes(columns: dict[str, Any]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def npy_bytes() -> bytes:
    sink = io.BytesIO()
    np.save(sink, np.eye(3))
    return sink.getvalue()


def fill(put: Put) -> None:
    """Write one small corpus of every format."""
    for name in ("train/cat/a.png", "train/cat/b c%.png", "val/dog/d#?.png", "val/.hidden/e.png"):
        put(f"photos/{name}", name.encode())
    paths = ["train/cat/a.png", "../secret.png", "val/dog/d#?.png", "gone.png", "s3://other/x.png"]
    put("photos/table.csv", "\n".join(["path", *paths]).encode())
    put("facts.jsonl", b'{"text": "purrs", "label": "cat"}\n')
    put("facts.json", json.dumps({"cat": ["purrs"]}).encode())
    put("images.parquet", parquet_bytes({"image": [b"x", b"y"], "label": ["a", "b"]}))
    put("shards/s-0.tar", shard_bytes())
    put("shards/s-1.tar", shard_bytes())
    put("vectors/e.npy", npy_bytes())
    put("vectors/e.jsonl", b'{"label": "a"}\n{"label": "b"}\n{"label": "a"}\n')


def assert_every_format_is_read(root: str) -> None:
    def rows_of(format: str, path: str, modality: str = "image") -> list[Row]:
        tree = {"modality": modality, "format": format, "path": path}
        rows = list_rows("x", CorpusConfig.model_validate(tree))
        assert rows == list_rows("x", CorpusConfig.model_validate(tree))
        return rows

    def at(relative: str) -> str:
        return join(root, relative)

    folder = rows_of("folder", at("photos"))
    assert [(row.id, row.label, row.split) for row in folder if row.fault is None] == [
        ("train/cat/a.png", "cat", "train"),
        ("train/cat/b c%.png", "cat", "train"),
        ("val/dog/d#?.png", "dog", "val"),
    ]
    assert [row.read() for row in folder] == [row.id.encode() for row in folder]
    assert all(row.stamp.startswith(f"{len(row.id)}-") for row in folder)
    table = rows_of("table", at("photos/table.csv"))
    outside = ["leads outside the corpus folder" in (row.fault or "") for row in table]
    assert outside == [False, True, False, False, True]
    assert [table[0].read(), table[2].read()] == [b"train/cat/a.png", b"val/dog/d#?.png"]
    assert table[3].stamp == "missing"
    with pytest.raises(RowError, match="cannot be opened"):
        table[3].read()
    assert [(row.label, row.text) for row in rows_of("table", at("facts.jsonl"), "text")] == [("cat", "purrs")]
    assert [(row.label, row.text) for row in rows_of("descriptors", at("facts.json"), "text")] == [("cat", "purrs")]
    assert [row.read() for row in rows_of("table", at("images.parquet"))] == [b"x", b"y"]
    for pattern in ("shards", "shards/s-*.tar", "shards/s-{0..1}.tar"):
        samples = rows_of("webdataset", pattern_at(root, pattern))
        assert [(row.id, row.read()) for row in samples] == [
            (f"s-{shard}.tar/{key}", body) for shard in (0, 1) for key, body in (("1", b"one"), ("2", b"two"))
        ]
    tree = {"modality": "vector", "format": "embeddings", "path": at("vectors/e.npy")}
    (ready,) = stream_ready("x", CorpusConfig.model_validate(tree))
    assert ready.embeddings.tolist() == np.eye(3).tolist()
    assert [row.label for row in ready.rows] == ["a", "b", "a"]
    assert [row.id for row in list_inputs(at("photos"), "image")] == [row.id for row in folder]
    for format, path in (("folder", "none"), ("table", "none.csv"), ("webdataset", "shards/t-{0..1}.tar")):
        with pytest.raises(InputError, match="which does not exist"):
            rows_of(format, pattern_at(root, path))


def pattern_at(root: str, pattern: str) -> str:
    """Return a place as a user writes it: braces and stars stand as they are."""
    base, _, query = root.partition("?")
    return f"{base}/{pattern}" + (f"?{query}" if query else "")


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[str]:
    """A corpus in fsspec's filesystem in memory."""
    root = f"/{tmp_path.name}"
    filesystem = fsspec.filesystem("memory")
    fill(lambda name, content: filesystem.pipe(f"{root}/{name}", content))
    yield f"memory:/{root}"
    filesystem.rm(root, recursive=True)


@pytest.fixture
def s3(s3_bucket: str) -> str:
    """A corpus in a bucket of a local server."""
    filesystem, path = remote(s3_bucket)

    def put(name: str, content: bytes) -> None:
        with filesystem.open_output_stream(f"{path}/{name}") as stream:
            stream.write(content)

    fill(put)
    return s3_bucket


def test_every_format_from_memory(memory: str) -> None:
    assert_every_format_is_read(memory)


def test_every_format_from_s3(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_every_format_is_read(s3)
    # The address may stand in the URI as well; every row carries it to the worker that reads it.
    address = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert_every_format_is_read(f"{s3}?endpoint_override={address}&scheme=http")


def test_a_file_uri_is_a_local_path(tmp_path: Path) -> None:
    fill(lambda name, content: _write(tmp_path / name, content))
    (tmp_path / "photos" / "train" / "cat" / "out.png").symlink_to("/etc/hostname")
    tree = {"modality": "image", "format": "folder", "path": tmp_path.as_uri() + "/photos"}
    faults = [row.fault for row in list_rows("x", CorpusConfig.model_validate(tree)) if row.fault is not None]
    assert faults == ["link leads outside the corpus folder"]


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def test_a_server_that_is_not_there_is_said_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    place = "s3://bucket/photos?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1"
    corpus = CorpusConfig.model_validate({"modality": "image", "format": "folder", "path": place})
    with pytest.raises(
        InputError, match=r"corpora.x.path is s3://bucket/photos.*cannot be opened: .*NETWORK_CONNECTION"
    ):
        list_rows("x", corpus)


@pytest.mark.parametrize("place", ["nope://bucket/x", "s3://", "memory://"])
def test_places_that_cannot_be_opened(place: str) -> None:
    memory = fsspec.filesystem("memory")  # which is one for all tests of a process
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    with pytest.raises(InputError, match=f"corpora.x.path is {place}|corpora.x is empty"):
        list_rows("x", CorpusConfig.model_validate({"modality": "image", "format": "folder", "path": place}))


def test_parts_of_places() -> None:
    place = "s3://bucket/a b/c%25.tar?region=x"
    assert join("s3://bucket/a?region=x", "b c.png") == "s3://bucket/a/b%20c.png?region=x"
    assert parent(place) == "s3://bucket/a b?region=x"
    assert base_name(place) == "c%.tar"
    assert remote("memory://a/b%20c")[1] == "/a/b c"
