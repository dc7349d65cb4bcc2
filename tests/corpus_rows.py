"""All rows of a corpus, or of inputs for prediction, at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from uml_core.config import CorpusConfig
from uml_core.corpora.readers import stream_rows
from uml_core.corpora.readers.inputs import stream_inputs
from uml_core.corpora.rows import Row


def list_rows(name: str, corpus: CorpusConfig, **options: Any) -> list[Row]:
    return list(stream_rows(name, corpus, **options))


def list_inputs(path: str | Path, modality: str, **options: Any) -> list[Row]:
    return list(stream_inputs(path, modality, **options))
