"""Unlabelled inputs for prediction: every file of a folder, or every row of a table."""

from __future__ import annotations

from pathlib import Path

from uml_core.config import CorpusConfig
from uml_core.corpora.readers import SUFFIXES, list_rows
from uml_core.corpora.rows import Row
from uml_core.errors import InputError, listing


def list_inputs(path: Path, modality: str) -> list[Row]:
    """Return one row an input; its id is the path relative to the folder (or the table's id).

    Raises:
        InputError: the path is missing, or holds nothing of the modality.
    """
    if not path.exists():
        raise InputError(f"--input is {path}, which does not exist; give a folder of {modality} files, or a table")
    if path.is_file() and path.suffix.lower() in (".jsonl", ".csv", ".parquet"):
        return list_rows(
            "input", CorpusConfig.model_validate({"modality": modality, "format": "table", "path": str(path)})
        )
    known = SUFFIXES[modality]
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    root = path.parent if path.is_file() else path
    names = {file: file.relative_to(root).as_posix() for file in files if file.suffix.lower() in known}
    if not names:
        raise InputError(f"--input {path} holds no {modality} file; known endings are {listing(sorted(known))}")
    if modality == "text":
        return [
            Row(name, None, "predict", text=file.read_text(encoding="utf-8", errors="replace"))
            for file, name in names.items()
        ]
    return [Row(name, None, "predict", path=str(file)) for file, name in names.items()]
