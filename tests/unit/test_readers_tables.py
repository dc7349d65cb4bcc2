"""Tables: paths that stay in their folder, bytes in Parquet, Hugging Face's files, CSV's damages, several tables."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.corpus_rows import list_rows
from uml_core.config import CorpusConfig
from uml_core.corpora import content, rows
from uml_core.corpora.content import ByteRange, Cell
from uml_core.corpora.readers import table_files
from uml_core.corpora.rows import Row
from uml_core.encoders import RowError
from uml_core.errors import InputError


def rows_of(path: Path | str, modality: str = "image", **settings: Any) -> list[Row]:
    tree = {"modality": modality, "format": "table", "path": str(path), **settings}
    return list_rows("photos", CorpusConfig.model_validate(tree))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A corpus folder with a picture and links, beside a file that no row may reach."""
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(b"secret")
    (folder / "sub" / "a.png").write_bytes(b"picture")
    (folder / "inside.png").symlink_to("sub/a.png")
    (folder / "outside.png").symlink_to(tmp_path / "secret.png")
    (folder / "away").symlink_to(tmp_path)
    return folder


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("sub/a.png", None),
        ("./sub/../sub/a.png", None),
        ("inside.png", None),
        ("gone.png", None),  # said when it is read
        ("../secret.png", "path ../secret.png leads outside the corpus folder {data}"),
        ("sub/../../secret.png", "path sub/../../secret.png leads outside the corpus folder {data}"),
        ("/etc/hostname", "path /etc/hostname leads outside the corpus folder {data}"),
        ("outside.png", "link leads outside the corpus folder"),
        ("away/secret.png", "link leads outside the corpus folder"),
        ("", "no path"),
        ("a\0b", "path 'a\\x00b' is no file name"),
        (["a"], "path is a list; expected a string or a number"),
    ],
)
def test_a_path_stays_in_the_tables_folder(data: Path, path: Any, fault: str | None) -> None:
    (data / "table.jsonl").write_text(json.dumps({"path": path}))
    (row,) = rows_of(data / "table.jsonl")
    assert row.fault == (None if fault is None else fault.format(data=data))
    if fault is not None:
        with pytest.raises(RowError):
            row.read()
    elif path != "gone.png":
        assert row.read() == b"picture"


def test_paths_may_start_in_another_folder(data: Path, tmp_path: Path) -> None:
    table = tmp_path / "elsewhere" / "table.csv"
    table.parent.mkdir()
    table.write_text(f"path,label\nsub/a.png,cat\n{data}/inside.png,cat\n../secret.png,cat\n")
    first, absolute, bad = rows_of(table, root=str(data))
    assert first.read() == absolute.read() == b"picture"
    assert "outside the corpus folder" in (bad.fault or "")
    with pytest.raises(RowError, match="cannot be opened: No such file"):
        rows_of(table)[0].read()
    with pytest.raises(InputError, match=r"corpora.photos.root is .*/nowhere, which is no folder"):
        rows_of(table, root=str(tmp_path / "nowhere"))


def test_a_stamp_follows_the_file_and_not_its_name(data: Path) -> None:
    (data / "table.jsonl").write_text('{"path": "sub/a.png"}')
    (before,) = rows_of(data / "table.jsonl")
    assert rows_of(data / "table.jsonl") == [before]
    (data / "sub" / "a.png").write_bytes(b"another")
    os.utime(data / "sub" / "a.png", ns=(1, 1))
    (after,) = rows_of(data / "table.jsonl")
    assert after.stamp == "7-1"
    assert after.key != before.key


@pytest.mark.parametrize("as_struct", [False, True])
def test_bytes_in_parquet_are_read_by_row_group_and_row(tmp_path: Path, as_struct: bool) -> None:
    contents = [f"picture {index}".encode() for index in range(100)]
    cells: list[Any] = [{"bytes": content, "path": "x.png"} for content in contents] if as_struct else contents
    columns = {"image": cells, "label": ["ab"[index % 2] for index in range(100)], "text": ["left out"] * 100}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=40)
    found = rows_of(tmp_path / "a.parquet")
    assert [row.member for row in found[38:42]] == [
        Cell(0, 38, "image"), Cell(0, 39, "image"), Cell(1, 0, "image"), Cell(1, 1, "image"),
    ]  # fmt: skip
    assert all(row.text is None and row.stamp for row in found)
    assert [row.read() for row in found] == contents
    assert [found[index].read() for index in (99, 3, 50, 49)] == [contents[index] for index in (99, 3, 50, 49)]


def test_a_cell_without_bytes_and_a_file_that_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [{"bytes": None, "path": "x.png"}, {"bytes": b"x", "path": None}]}), path)
    empty, full = rows_of(path)
    with pytest.raises(RowError, match="column image holds no bytes"):
        empty.read()
    pq.write_table(pa.table({"image": [{"bytes": b"y", "path": None}]}), path)
    assert rows_of(path)[0].read() == b"y"
    with pytest.raises(RowError, match="row group 0 has no row 1: the file has changed"):
        full.read()
    path.unlink()
    with pytest.raises(RowError, match="cannot be opened"):
        full.read()


def test_the_files_of_a_hugging_face_data_set(tmp_path: Path) -> None:
    features = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    for name, labels in {
        "train-00000-of-00002": [1, 0],
        "train-00001-of-00002": [1],
        "test-00000-of-00001": [0, 7],
    }.items():
        table = pa.table({"image": [{"bytes": b"x", "path": None}] * len(labels), "label": labels})
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    assert [(row.id, row.label, row.split, row.fault) for row in rows_of(tmp_path)] == [
        ("test-00000-of-00001.parquet/row-0", "cat", "test", None),
        ("test-00000-of-00001.parquet/row-1", "7", "test", "label 7 has no name in the file"),
        ("train-00000-of-00002.parquet/row-0", "dog", "train", None),
        ("train-00000-of-00002.parquet/row-1", "cat", "train", None),
        ("train-00001-of-00002.parquet/row-0", "dog", "train", None),
    ]
    assert len(rows_of(tmp_path / "train-*.parquet")) == 3


def test_parquet_without_its_end_and_with_a_damaged_row_group(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = [f"sentence {index} {'x' * 50}" for index in range(3000)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=1000, compression="zstd", use_dictionary=False)
    content = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    content[start : start + 400] = bytes(400)
    path.write_bytes(content)
    found = rows_of(path, "text")
    faults = [row.fault for row in found if row.fault is not None]
    assert len(faults) == 1
    assert faults[0].startswith("row group 1 cannot be read from row")
    assert {row.text for row in found if row.fault is None} >= {*texts[:1000], *texts[2000:]}
    path.write_bytes(content[:-100])
    with pytest.raises(InputError, match="is not readable as Parquet"):
        rows_of(path, "text")


def test_csv_with_damaged_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(
        b'\xef\xbb\xbftext , label\n"two\nlines",a\nlatin \xe9,a\n\nshort\none,too,many\n'
        + b"x" * 140_000
        + b",a\nlast,b\n"
    )
    found = rows_of(path, "text")
    assert [(row.id, row.text) for row in found if row.fault is None] == [
        ("row-0", "two\nlines"),
        ("row-4", "x" * 140_000),
        ("row-5", "last"),
    ]
    assert [row.fault for row in found if row.fault is not None] == [
        "line 4 is not valid UTF-8",
        "line 6 has 1 fields, the header 2",
        "line 7 has 3 fields, the header 2",
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b'text;label\n"one; two, three";a\nfour;b\n'),
        ("a.csv", b'"text"\t"label"\none; two, three\ta\nfour\tb\n'),
        ("a.tsv", b"text\tlabel\none; two, three\ta\nfour\tb\n"),
        ("a.csv.gz", b'text,label\n"one; two, three",a\nfour,b\n'),
        ("a.jsonl.gz", b'{"text": "one; two, three", "label": "a"}\n{"text": "four", "label": "b"}'),
    ],
)
def test_other_separators_and_compressed_tables(tmp_path: Path, name: str, content: bytes) -> None:
    content = gzip.compress(content) if name.endswith(".gz") else content  # with the time: no name of a test holds it
    (tmp_path / name).write_bytes(content)
    for place in (tmp_path / name, tmp_path):
        assert [(row.text, row.label) for row in rows_of(place, "text")] == [("one; two, three", "a"), ("four", "b")]
    if name.endswith(".gz"):
        (tmp_path / name).write_bytes(content[:-12])
        with pytest.raises(InputError, match=r"is not readable as text|cannot be read to its end"):
            rows_of(tmp_path / name, "text")


def test_a_column_alone_is_one_whatever_its_text_holds(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\none; two\nfour\n")
    assert [row.text for row in rows_of(tmp_path / "a.csv", "text")] == ["one; two", "four"]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_columns_of_other_names(tmp_path: Path, ending: str, caplog: pytest.LogCaptureFixture) -> None:
    path, frame = tmp_path / f"a.{ending}", pd.DataFrame({"Text": ["x"], "Label": ["cat"], "text": ["not this"]})
    if ending == "parquet":
        frame.to_parquet(path)
    else:
        path.write_text(frame.to_csv(index=False) if ending == "csv" else frame.to_json(orient="records", lines=True))
    (row,) = rows_of(path, "text")
    assert (row.text, row.label) == ("not this", None)
    assert "a column of another spelling is read with columns: {label: Label}" in caplog.text
    (row,) = rows_of(path, "text", columns={"text": "Text", "label": "Label"})
    assert (row.text, row.label) == ("x", "cat")
    (row,) = rows_of(path, "text", columns={"id": "text", "label": "text"})
    assert (row.id, row.text, row.label) == ("not this", "not this", "not this")
    with pytest.raises(InputError, match=r"has no column Lable, which columns has as label .did you mean 'Label'"):
        rows_of(path, "text", columns={"label": "Lable"})


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.csv", b"Text\nx\n", r"is read with columns: .text: Text"),
        ("a.csv", b"text,text\nx,y\n", "has column text twice"),
        ("a.csv", "text\nx\n".encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        ("a.jsonl", '{"text": "x"}'.encode("utf-16"), "is UTF-16 text"),
        ("a.jsonl", b"[1, 2]\n[3]\n", "line 1 holds a list, not an object"),
        ("a.csv", b"caption\nx\n", "has columns caption; a table needs a column text or path"),
        ("a.csv", b"", "is empty"),
        ("a.parquet", b"PAR1", "is not readable as Parquet"),
    ],
)
def test_tables_that_are_refused_as_a_whole(tmp_path: Path, name: str, content: bytes, part: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=part):
        rows_of(tmp_path / name, "text")


def test_sentences_in_files_are_read_as_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("größe".encode())
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "table.csv").write_text("path\na.txt\nb.txt\n")
    good, bad = rows_of(tmp_path / "table.csv", "text")
    assert good.read() == "größe"
    with pytest.raises(RowError, match=r"not UTF-8 text .byte 0."):
        bad.read()


def test_a_row_beyond_what_is_read_is_rejected_before_it_fills_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "MAX_BYTES", 100)
    monkeypatch.setattr(rows, "MAX_LETTERS", 20)
    monkeypatch.setattr(table_files, "MAX_LINE", 1000)
    (tmp_path / "large.png").write_bytes(bytes(101))
    (tmp_path / "fits.png").write_bytes(bytes(100))
    for row in (Row("0", None, "train", path=str(tmp_path / "large.png"), member=ByteRange(0, 101)),
                Row("1", None, "train", path=str(tmp_path / "large.png"))):  # fmt: skip
        with pytest.raises(RowError, match="more than 100 bytes"):
            row.read()
    assert len(Row("2", None, "train", path=str(tmp_path / "fits.png")).read()) == 100
    with pytest.raises(RowError, match="text of 21 letters; at most 20"):
        Row("3", None, "train", text="x" * 21).read()
    bomb = [json.dumps({"text": text}) for text in ("a", "b" * 10_000_000, "c")]
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress("\n".join(bomb).encode()))
    assert [row.fault for row in rows_of(tmp_path / "bomb.jsonl.gz", "text")] == [
        None,
        "line 2 has more than 1000 bytes; it and the lines after it are lost",
    ]
