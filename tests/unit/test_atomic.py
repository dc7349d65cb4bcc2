"""Whole files: a file that can be seen is complete, and a missing one is no error."""

from __future__ import annotations

from pathlib import Path

import pyarrow.fs as pafs
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from uml_core.files.atomic import LOCAL, read_if_there, write_whole


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_a_file_is_replaced_as_a_whole_and_a_missing_one_is_none(tmp_path: Path, kind: str) -> None:
    filesystem = LOCAL if kind == "local" else pafs.PyFileSystem(pafs.FSSpecHandler(MemoryFileSystem()))
    path = f"{tmp_path}/new/folder/file.json"
    assert read_if_there(filesystem, path) is None
    for content in (b"first", b"2"):
        write_whole(filesystem, path, content)
        assert read_if_there(filesystem, path) == content
    assert read_if_there(filesystem, f"{path}/below-a-file") is None
    listed = filesystem.get_file_info(pafs.FileSelector(f"{tmp_path}/new/folder"))
    assert [info.base_name for info in listed] == ["file.json"]


def test_a_killed_writer_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(LOCAL, str(path), b"whole")
    with pytest.raises(TypeError):
        write_whole(LOCAL, str(path), "text breaks off in the middle")  # type: ignore[arg-type]
    assert path.read_bytes() == b"whole"


def test_a_file_without_a_folder_lies_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_whole(LOCAL, "file", b"here")
    assert (tmp_path / "file").read_bytes() == b"here"
