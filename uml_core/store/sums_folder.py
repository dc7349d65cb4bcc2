"""Files of one pass over a corpus, beside its parts: what was added up so far, and the total.

    STORE/CORPUS/FINGERPRINT/sums/KEY/

KEY tells what is added up of which rows, so that a file that is there is right. `CorpusStore.publish` deletes them all:
they are of the rows as they were.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import pyarrow.fs as pafs

from uml_core.files.atomic import write_whole
from uml_core.files.lease import Lease, exclusive
from uml_core.store.corpus_store import SUMS, CorpusStore, open_filesystem

TOTAL = "total.npz"


@dataclass(frozen=True)
class SumsFolder:
    """The files of one pass; pickled with what opens the store."""

    store: tuple[str, str, str]  # of the corpus: URI, name, fingerprint
    key: str

    @cached_property
    def corpus_store(self) -> CorpusStore:
        """The store that the pass reads."""
        return CorpusStore(*self.store)

    def writing(self, on_wait: Callable[[], None]) -> contextlib.AbstractContextManager[Lease]:
        """Be the only process that runs this pass; others that want it wait."""
        return exclusive(self._fs, f"{self._directory}.lease", on_wait)

    def names(self) -> set[str]:
        """The files that are there."""
        selector = pafs.FileSelector(self._directory, allow_not_found=True)
        return {info.base_name for info in self._fs.get_file_info(selector)}

    def write(self, name: str, content: bytes) -> None:
        """Write a file in one rename."""
        write_whole(self._fs, f"{self._directory}/{name}", content)

    def read(self, name: str) -> bytes:
        """A file's content."""
        with self._fs.open_input_stream(f"{self._directory}/{name}") as stream:
            content: bytes = stream.read()
        return content

    def keep_only(self, name: str) -> None:
        """Delete all other files."""
        for other in self.names() - {name}:
            self._fs.delete_file(f"{self._directory}/{other}")

    @cached_property
    def _fs(self) -> pafs.FileSystem:
        return open_filesystem(self.store[0])[0]

    @property
    def _directory(self) -> str:
        return f"{self.corpus_store.directory}/{SUMS}/{self.key}"
