"""Tar shards: samples, byte ranges, and what happens to damaged shards."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from tests.corpus_rows import list_rows
from uml_core.config import CorpusConfig
from uml_core.corpora.content import ByteRange
from uml_core.corpora.rows import Row
from uml_core.encoders import RowError
from uml_core.errors import InputError

Members = dict[str, bytes]


def write_shard(path: Path, members: Members, format: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def samples(start: int, count: int) -> Members:
    members: Members = {}
    for index in range(start, start + count):
        members |= {
            f"{index:04d}.jpg": f"picture {index}".encode(),
            f"{index:04d}.cls": b"ab"[index % 2 : index % 2 + 1],
        }
    return members


def rows_of(place: Path | str, modality: str = "image", split: str = "train") -> list[Row]:
    settings = {"modality": modality, "format": "webdataset", "path": str(place), "split": split}
    return list_rows("shards", CorpusConfig.model_validate(settings))


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_a_row_a_sample_read_by_its_range(tmp_path: Path, format: int) -> None:
    long = "deep/" * 30 + "0001.jpg"
    path = write_shard(tmp_path / "a.tar", {**samples(0, 2), "./b/7.PNG": b"seven", long: b"far"}, format)
    found = rows_of(path)
    assert [(row.id, row.label, row.split) for row in found] == [
        ("a.tar/0000", "a", "train"),
        ("a.tar/0001", "b", "train"),
        ("a.tar/b/7", None, "train"),
        (f"a.tar/{long[:-4]}", None, "train"),
    ]
    assert [row.read() for row in found] == [b"picture 0", b"picture 1", b"seven", b"far"]
    assert all(isinstance(row.member, ByteRange) for row in found)


def test_metadata_in_json_and_a_modality_of_sentences(tmp_path: Path) -> None:
    record = {"label": "cat", "split": "validation", "id": "mine", "caption": "left out"}
    members = {"1.txt": "a größe".encode(), "1.json": json.dumps(record).encode(), "2.cls": b"dog\n", "2.txt": b"x"}
    first, second = rows_of(write_shard(tmp_path / "a.tar", members), "text", split="test")
    assert (first.id, first.label, first.split, first.read()) == ("mine", "cat", "val", "a größe")
    assert (second.id, second.label, second.split) == ("a.tar/2", "dog", "test")


def test_folders_and_patterns_of_shards(tmp_path: Path) -> None:
    for index in range(12):
        write_shard(tmp_path / "train" / f"s-{index:02d}.tar", samples(index, 1))
    write_shard(tmp_path / "test" / "s-00.tar", samples(0, 1))
    assert [row.id for row in rows_of(tmp_path / "train" / "s-{09..11}.tar")] == [
        f"s-{index:02d}.tar/{index:04d}" for index in (9, 10, 11)
    ]
    assert len(rows_of(tmp_path / "train" / "s-0*.tar")) == 10
    assert [row.id for row in rows_of(tmp_path)][:2] == ["test/s-00.tar/0000", "train/s-00.tar/0000"]
    assert len(rows_of(tmp_path / "{train,test}" / "s-00.tar")) == 2
    with pytest.raises(InputError, match=r"there is no .*s-12.tar; give the path"):
        rows_of(tmp_path / "train" / "s-{11..12}.tar")
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"a folder without any file that ends in .tar"):
        rows_of(tmp_path / "none")


@pytest.mark.parametrize(
    ("members", "fault"),
    [
        ({"1.cls": b"a"}, "sample has no image members: .cls"),
        ({"1.jpg": b"x", "1.png": b"y"}, "sample has 2 image members: .jpg, .png"),
        ({"1.jpg": b"x", "1.json": b"{"}, ".json member cannot be read: Expecting property name"),
        ({"1.jpg": b"x", "1.cls": b"\xff"}, ".cls member cannot be read: 'utf-8' codec"),
        (
            {"1.jpg": b"x", "1.json": b'{"label": [1]}'},
            "label is a list; a row has one class: write the row once for each, or keep the one that counts",
        ),
        ({"1.jpg": b"x", "1.json": b" " * (2**20 + 1)}, ".json member has 1048577 bytes; at most 1048576 are read"),
    ],
)
def test_samples_that_cannot_be_used(tmp_path: Path, members: Members, fault: str) -> None:
    good, bad = rows_of(write_shard(tmp_path / "a.tar", {**samples(0, 1), **members}))
    assert good.fault is None
    assert bad.fault is not None
    assert bad.fault.startswith(fault)


def test_one_label_type_a_corpus_and_one_row_an_id(tmp_path: Path) -> None:
    members = {"1.jpg": b"x", "1.cls": b"3", "2.jpg": b"y", "2.json": b'{"label": 3}', "1.png": b"z"}
    found = rows_of(write_shard(tmp_path / "a.tar", members))
    assert [row.fault for row in found] == [
        None,
        "label 3 is an int, labels before it are strings: labels of mixed types",
        "id 'a.tar/1' occurs again (row 2)",
    ]


# Each member is a header block and one block of content: two members a sample, six in all, then the end mark. A sample
# counts as whole once a member of the next one, or the end mark, follows it.
@pytest.mark.parametrize(
    ("blocks", "count"),
    [(0, 0), (0.2, 0), (1, 0), (2.1, 0), (4, 0), (4.5, 0), (5, 1), (6, 1), (9, 2), (11.9, 2), (12, 2)],
)
def test_a_cut_shard_gives_the_rows_before_the_cut_and_one_fault(tmp_path: Path, blocks: float, count: int) -> None:
    path = write_shard(tmp_path / "cut.tar", samples(0, 3), tarfile.USTAR_FORMAT)
    assert len(rows_of(path)) == 3
    path.write_bytes(path.read_bytes()[: int(blocks * 512)])
    *usable, last = rows_of(path)
    assert [row.read() for row in usable] == [f"picture {index}".encode() for index in range(count)]
    assert last.id == "cut.tar"
    assert last.fault is not None
    assert f"{path} is damaged" in last.fault


def test_a_broken_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", samples(0, 3), tarfile.USTAR_FORMAT)
    content = bytearray(path.read_bytes())
    content[8 * 512 : 8 * 512 + 40] = b"\x07" * 40  # the header of the third sample's picture
    path.write_bytes(content)
    write_shard(tmp_path / "b.tar", samples(3, 1))
    first, fault, other = rows_of(tmp_path)
    assert (first.id, fault.id, other.id) == ("a.tar/0000", "a.tar", "b.tar/0003")
    assert fault.fault is not None
    assert "damaged after sample 0000, its further rows are lost: no member starts there at byte 4096" in fault.fault


def test_a_negative_size_does_not_loop(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", samples(0, 1), tarfile.USTAR_FORMAT)
    content = bytearray(path.read_bytes())
    content[124:136] = b"\xff" * 10 + b"\xfc\x00"  # size -1024 in base 256: back to this header, for ever
    header = content[:512]
    content[148:156] = f"{sum(header[:148]) + 8 * 32 + sum(header[156:]):06o}\0 ".encode()
    path.write_bytes(content)
    (row,) = rows_of(path)
    assert "negative size" in (row.fault or "")


def test_compressed_shards_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w:gz"):
        pass
    with pytest.raises(InputError, match=r"compressed .gzip.*unpack it to a plain .tar"):
        rows_of(tmp_path / "a.tar")


def test_a_shard_that_shrank_since_it_was_listed(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", samples(0, 1))
    (row,) = rows_of(path)
    path.write_bytes(path.read_bytes()[: row.member.offset + 3])  # type: ignore[union-attr]
    with pytest.raises(RowError, match="ends after 3 of its 9 bytes"):
        row.read()
