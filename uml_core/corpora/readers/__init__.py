"""Readers: one function a `format`, from a path to rows that are not read yet."""

from uml_core.corpora.readers.base import SUFFIXES
from uml_core.corpora.readers.stream import list_rows, rows_of, stream_rows

__all__ = ["SUFFIXES", "list_rows", "rows_of", "stream_rows"]
