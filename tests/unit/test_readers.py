"""Readers: what they find, and what they refuse in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import write_embeddings, write_picture_corpora
from tests.corpus_rows import list_inputs, list_rows
from uml_core.config import CorpusConfig
from uml_core.corpora.ready.adopt import stream_ready
from uml_core.corpora.rows import Row, canonical_split
from uml_core.encoders import RowError
from uml_core.errors import InputError


def corpus(path: Path, format: str = "table", modality: str = "text") -> CorpusConfig:
    return CorpusConfig.model_validate({"modality": modality, "format": format, "path": str(path)})


def write_lines(path: Path, records: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return path


def test_folder_with_and_without_splits(tmp_path: Path) -> None:
    write_picture_corpora(tmp_path, counts={"train": 2, "validation": 1})
    (tmp_path / "pictures" / "train" / "circle" / ".hidden").write_text("x")
    (tmp_path / "pictures" / "train" / "circle" / "notes.txt").write_text("x")
    found = list_rows("pictures", corpus(tmp_path / "pictures", "folder", "image"))
    assert len(found) == 9
    assert {(row.split, row.label) for row in found} == {
        (split, label) for split in ("train", "val") for label in ("circle", "square", "stripes")
    }
    assert "train/circle/0.png" in {row.id for row in found}
    flat = list_rows("pictures", corpus(tmp_path / "pictures" / "train", "folder", "image"))
    assert {row.split for row in flat} == {"train"}


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_tables_agree(tmp_path: Path, suffix: str) -> None:
    columns = {"text": ["a cat", "a dog"], "label": ["cat", "dog"], "split": ["train", "dev"]}
    path = tmp_path / f"names.{suffix}"
    if suffix == "jsonl":
        write_lines(path, [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)])
    elif suffix == "csv":
        path.write_text("text,label,split\na cat,cat,train\na dog,dog,dev\n", encoding="utf-8")
    else:
        pq.write_table(pa.table(columns), path)
    assert list_rows("names", corpus(path)) == [
        Row("row-0", "cat", "train", text="a cat"),
        Row("row-1", "dog", "val", text="a dog"),
    ]


def test_descriptors_of_both_shapes(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text(json.dumps({"cat": ["purrs", "has fur"], "dog": {"a photo": ["barks"]}}), encoding="utf-8")
    found = list_rows("facts", corpus(path, "descriptors"))
    assert [(row.label, row.text) for row in found] == [("cat", "purrs"), ("cat", "has fur"), ("dog", "barks")]


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that is written anew for every example."""
    return tmp_path_factory.mktemp("facts") / "facts.json"


@given(st.dictionaries(st.text(min_size=1), st.lists(st.text(), max_size=4), max_size=5))
def test_descriptors_keep_every_sentence(facts: Path, tree: dict[str, list[str]]) -> None:
    facts.write_text(json.dumps(tree), encoding="utf-8")
    expected = [(label, text) for label, texts in tree.items() for text in texts]
    if not expected:
        with pytest.raises(InputError, match="is empty"):
            list_rows("facts", corpus(facts, "descriptors"))
        return
    assert [(row.label, row.text) for row in list_rows("facts", corpus(facts, "descriptors"))] == expected


@pytest.mark.parametrize(
    ("records", "part"),
    [
        ([{"caption": "x"}], "needs a column text or path"),
        (["just a string"], "line 1 holds a str"),
        ([], "is empty"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, records: list[Any], part: str) -> None:
    path = write_lines(tmp_path / "names.jsonl", records)
    with pytest.raises(InputError, match=part):
        list_rows("names", corpus(path))


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"text": ', "line 3 is not JSON: Expecting value"),
        ("[1]", "line 3 holds a list, not an object"),
        ('{"text": "y", "label": 1}', "label 1 is an int, labels before it are strings: labels of mixed types"),
        (
            '{"text": "y", "label": ["a"]}',
            "label is a list; a row has one class: write the row once for each, or keep the one that counts",
        ),
        ('{"text": "y", "id": "7"}', "id '7' occurs again (row 1)"),
        ('{"text": "\\ud800"}', "text is not valid Unicode (UTF-8)"),
        (b'{"text": "\xff"}', "line 3 is not valid UTF-8 (byte 10)"),
    ],
)
def test_one_bad_line_is_one_faulty_row(tmp_path: Path, line: str | bytes, fault: str) -> None:
    path = tmp_path / "names.jsonl"
    bad = line if isinstance(line, bytes) else line.encode()
    path.write_bytes(b'{"text": "x", "id": 7, "label": "a"}\n\n' + bad + b'\n{"text": "z", "label": "b"}')
    first, faulty, last = list_rows("names", corpus(path))
    assert (first.fault, last.fault, last.text, last.id) == (None, None, "z", "row-2")
    assert faulty.fault == fault
    with pytest.raises(RowError, match=re.escape(fault)):
        faulty.read()


@pytest.mark.parametrize(
    ("name", "format", "modality", "part"),
    [
        ("none", "folder", "image", "does not exist"),
        ("empty", "folder", "image", "is empty"),
        ("deep", "folder", "image", "expected every file as SPLIT/CLASS/FILE"),
        ("texts", "folder", "image", "holds no image file"),
        ("file.xyz", "table", "text", "a table ends in"),
        ("file.xyz", "folder", "image", "needs a folder of classes"),
        ("bad.json", "descriptors", "text", "no list of sentences for class 'cat'"),
        ("file.xyz", "descriptors", "text", "is not JSON"),
        ("table.jsonl", "table", "image", "needs a column path"),
    ],
)
def test_paths_that_are_refused(tmp_path: Path, name: str, format: str, modality: str, part: str) -> None:
    (tmp_path / "empty").mkdir()
    for folder in ("deep/a/b/c", "texts/cat"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / ("file.png" if folder.startswith("deep") else "file.txt")).write_text("x")
    (tmp_path / "file.xyz").write_text("x")
    (tmp_path / "bad.json").write_text('{"cat": "purrs"}')
    (tmp_path / "table.jsonl").write_text('{"text": "x"}')
    with pytest.raises(InputError, match=part):
        list_rows("photos", corpus(tmp_path / name, format, modality))


def test_rows_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    (tmp_path / "zero.png").touch()
    for row, reason in (
        (Row("a", None, "train", text="  "), "empty text"),
        (Row("b", None, "train", path=str(tmp_path / "zero.png")), "empty file"),
        (Row("c", None, "train", path=str(tmp_path / "gone.png")), "cannot be opened"),
    ):
        with pytest.raises(RowError, match=reason):
            row.read()


def test_ready_embeddings(tmp_path: Path) -> None:
    path = write_embeddings(
        tmp_path / "e.parquet",
        {"label": ["a", "b", "a", None], "embedding": [[1, 2], [3, 4], [np.nan, 1], [1, 2]]},
    )
    (ready,) = stream_ready("names", corpus(path, "embeddings", "vector"))
    assert ready.embeddings.tolist() == [[1, 2], [3, 4], [1, 2]]
    assert [row.label for row in ready.rows] == ["a", "b", None]
    assert [row.fault for row in ready.rejected] == ["embedding with NaN or infinity"]


@pytest.mark.parametrize(
    ("columns", "part"),
    [
        ({"vector": [[1.0]]}, "has columns vector"),
        ({"embedding": ["x"]}, "not a list of numbers"),
        ({"embedding": [[float("nan")]]}, "no usable embedding"),
        ({"embedding": pa.array([], pa.list_(pa.float32()))}, "is empty"),
    ],
)
def test_ready_embeddings_that_are_refused(tmp_path: Path, columns: dict[str, Any], part: str) -> None:
    path = tmp_path / "e.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(InputError, match=part):
        list(stream_ready("names", corpus(path, "embeddings", "vector")))


def test_inputs_for_prediction(tmp_path: Path) -> None:
    write_picture_corpora(tmp_path, counts={"new": 1})
    found = list_inputs(tmp_path / "pictures", "image")
    assert [row.id for row in found] == ["new/circle/0.png", "new/square/0.png", "new/stripes/0.png"]
    assert {row.label for row in found} == {None}
    assert len(list_inputs(tmp_path / "names.jsonl", "text")) == 9
    with pytest.raises(InputError, match="holds no audio file"):
        list_inputs(tmp_path, "audio")


@pytest.mark.parametrize(("given_name", "expected"), [("Validation", "val"), ("train ", "train"), ("sketch", "sketch")])
def test_split_names(given_name: str, expected: str) -> None:
    assert canonical_split(given_name) == expected
