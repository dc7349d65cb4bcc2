"""Folders: layouts, links, pipes, other endings, empty classes; and prediction inputs, walked the same way."""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path

import pytest

from tests.corpus_rows import list_inputs, list_rows
from uml_core.config import CorpusConfig
from uml_core.corpora.readers.base import is_installed
from uml_core.corpora.readers.left_out import Census
from uml_core.corpora.rows import Row
from uml_core.encoders import RowError
from uml_core.errors import InputError


def rows_of(path: Path, modality: str = "image") -> list[Row]:
    return list_rows(
        "photos", CorpusConfig.model_validate({"modality": modality, "format": "folder", "path": str(path)})
    )


def write(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"picture")
    return root


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write(tmp_path / "corpus", "train/cat/a.png", "train/cat/b.PNG", "val/dog/c.jpeg")


def faults(found: list[Row]) -> dict[str, str]:
    return {row.id: row.fault for row in found if row.fault is not None}


def test_order_is_that_of_the_names_level_by_level(corpus: Path) -> None:
    write(corpus, "train/cat.old/z.png", "test/cat/y.png")
    assert [row.id for row in rows_of(corpus)] == [
        "test/cat/y.png", "train/cat/a.png", "train/cat/b.PNG", "train/cat.old/z.png", "val/dog/c.jpeg",
    ]  # fmt: skip


def test_files_at_another_depth_are_faults_and_the_rest_is_used(corpus: Path) -> None:
    write(corpus, "cover.png", "val/stray.png", "val/dog/deep/er/d.png")
    found = rows_of(corpus)
    assert len(found) == 6
    assert set(faults(found)) == {"cover.png", "val/stray.png", "val/dog/deep/er/d.png"}
    assert {row.label for row in found if row.fault is None} == {"cat", "dog"}
    assert "expected every file as SPLIT/CLASS/FILE, or every file as CLASS/FILE" in faults(found)["cover.png"]


def test_a_folder_of_files_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds a.png; expected every file as SPLIT/CLASS/FILE"):
        rows_of(write(tmp_path, "a.png", "b.png"))


def test_links(corpus: Path, tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", "x.png")
    cat = corpus / "train" / "cat"
    (cat / "inside.png").symlink_to("a.png")
    (cat / "outside.png").symlink_to(tmp_path / "elsewhere" / "x.png")
    (cat / "broken.png").symlink_to("gone.png")
    (cat / "circle").symlink_to(corpus / "train")
    (corpus / "train" / "fox").symlink_to(tmp_path / "elsewhere")
    (corpus / "train" / "lion").symlink_to("cat")
    (corpus / "train" / "again").symlink_to("..")
    found = rows_of(corpus)
    lion = [row for row in found if row.label == "lion"]
    assert [row.id for row in lion if row.fault is None] == [
        f"train/lion/{name}" for name in ("a.png", "b.PNG", "inside.png")
    ]
    assert [row.read() for row in lion if row.fault is None] == [b"picture"] * 3
    expected = {
        "outside.png": "link leads outside the corpus folder",
        "broken.png": "link leads nowhere",
        "circle": "link to a folder below the class folders",
    }
    said = faults(found)
    assert {name: said[f"train/cat/{name}"] for name in expected} == expected
    assert said["train/fox"] == "link leads outside the corpus folder"
    assert len(found) < 40, "the circle of links is cut"


def test_the_corpus_folder_itself_may_be_a_link(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(corpus)
    assert [row.fault for row in rows_of(tmp_path / "link")] == [None] * 3


def test_a_pipe_is_not_waited_for(corpus: Path) -> None:
    os.mkfifo(corpus / "val" / "dog" / "pipe.png")
    found = rows_of(corpus)
    assert faults(found) == {"val/dog/pipe.png": "not a regular file"}
    with pytest.raises(RowError, match="cannot be opened: not a regular file"):
        Row("x", None, "train", path=str(corpus / "val" / "dog" / "pipe.png")).read()


def test_a_name_that_is_no_unicode(corpus: Path) -> None:
    (corpus / "val" / "dog" / "\udcff.png").write_bytes(b"x")
    assert faults(rows_of(corpus)) == {"val/dog/\\udcff.png": "id is not valid Unicode (UTF-8)"}


def test_what_is_left_out_is_said(corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(corpus, "train/fox/notes.txt", "train/cat/x.m4a", "train/cat/y.m4a", ".cache/cat/z.png", "README")
    (corpus / "train" / "elk").mkdir()
    with caplog.at_level(logging.WARNING):
        assert len(rows_of(corpus)) == 3
    assert "corpora.photos: no image file in train/elk, train/fox" in caplog.text
    assert (
        "corpora.photos: files of other endings are left out: .m4a (2), none (1), .txt (1); known: .avif" in caplog.text
    )


def test_what_is_left_out_of_inputs_is_said_and_what_would_read_it(
    corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    census = Census("image", Counter({".heic": 2, ".txt": 1}))
    census.warn("corpora.photos")
    assert ".heic (2), .txt (1); known: .avif" in caplog.text
    assert caplog.text.rstrip().endswith("; for .heic: pip install pillow-heif")
    write(corpus, "a/x.m4a", "notes.txt")
    assert len(list_inputs(corpus, "image")) == 3
    assert "--input: files of other endings are left out: .m4a (1), .txt (1); known: .avif" in caplog.text
    assert "pip install av" not in caplog.text, "it would read no picture"
    with pytest.raises(InputError, match=r"no audio file; known endings are .*\.wav"):
        list_inputs(corpus / "notes.txt", "audio")


def test_a_missing_folder_and_one_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"corpora.photos.path is .*none, which does not exist"):
        rows_of(tmp_path / "none")
    with pytest.raises(InputError, match=r"holds no image file; known endings are .avif, .bmp, .gif"):
        rows_of(write(tmp_path, "train/cat/a.m4a"))


def test_a_folder_of_a_packages_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plain_folder").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert [is_installed(name) for name in ("plain-folder", "no-such-package", "pytest")] == [False, False, True]


def test_inputs_are_files_at_any_depth_tables_or_shards(corpus: Path, tmp_path: Path) -> None:
    write(corpus, "loose.png", "a/b/c/d/e.png", "notes.txt")
    (corpus / "out.png").symlink_to("/etc/hostname")
    found = list_inputs(corpus, "image")
    assert [row.id for row in found][:3] == ["a/b/c/d/e.png", "loose.png", "out.png"]
    assert {(row.label, row.split) for row in found} == {(None, "predict")}
    assert faults(found) == {"out.png": "link leads outside the corpus folder"}
    assert [row.id for row in list_inputs(corpus / "loose.png", "image")] == ["loose.png"]
    (row,) = list_inputs(corpus / "notes.txt", "text")
    assert row.read() == "picture"
    (tmp_path / "a.csv").write_text("path,id\ncorpus/loose.png,7\n")
    (row,) = list_inputs(tmp_path / "*.csv", "image")
    assert (row.id, row.split, row.read()) == ("7", "predict", b"picture")
    (tmp_path / "b.csv").write_text("path\nloose.png\na/b/c/d/e.png\n")
    found = list_inputs(tmp_path / "b.csv", "image", root=str(corpus))
    assert [(row.id, row.read()) for row in found] == [(name, b"picture") for name in ("loose.png", "a/b/c/d/e.png")]
    write(corpus, "a/loose.png")
    for folder in ("", "a/"):
        (corpus / folder / "t.csv").write_text("path\nloose.png\nloose.png\nb.png\n")
    assert [(row.id, row.fault) for row in list_inputs(corpus / "{,a/}t.csv", "image")] == [
        (f"{table}/{name}", None) for table in ("t.csv", "a/t.csv") for name in ("loose.png", "row-1", "b.png")
    ]
    with pytest.raises(InputError, match=r"--root is .*, and --input .* is no table"):
        list_inputs(corpus, "image", root=str(corpus))
    with pytest.raises(InputError, match=r"--input is .*none, which does not exist; give a folder of image files"):
        list_inputs(tmp_path / "none", "image")
