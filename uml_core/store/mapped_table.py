"""A corpus's embeddings as one file of rows on local disk, for corpora that do not fit in memory.

In: a finished corpus of the store. Out: a `CorpusTable` whose embeddings are a memory-mapped file: indexing reads rows,
and the operating system keeps of it what memory is free. The file is written once for each machine, a part at a time:

    CACHE/CORPUS/FINGERPRINT/KEY/embeddings.npy, label_codes.npy, split_codes.npy, lots.npy, names.json

KEY is a hash of the parts, so that a corpus embedded anew is written anew, in place of the file before it.

Shape legend: N rows, D embedding width.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from uml_core.config import Experiment, FeedConfig, hash_of
from uml_core.errors import InputError
from uml_core.files.atomic import LOCAL
from uml_core.files.lease import exclusive
from uml_core.files.paths import is_uri, local_path
from uml_core.store.corpus_store import CorpusStore
from uml_core.store.corpus_table import CorpusTable, finite_matrix

GIB = 2**30
BYTES_PER_NUMBER = 4  # float32, also of a store in float16
EMBEDDINGS, LABEL_CODES, SPLIT_CODES, LOTS = "embeddings.npy", "label_codes.npy", "split_codes.npy", "lots.npy"
NAMES = "names.json"

Matrix = npt.NDArray[np.float32]


def streamed_corpora(settings: FeedConfig, num_bytes: Mapping[str, int]) -> frozenset[str]:
    """The corpora that are not kept in memory.

    By `auto` all are kept where they fit in the limit together. Where they do not, half of it is for reading ahead, and
    the smallest corpora are kept while they fit in the other half.

    Args:
        settings: the choice and its limit.
        num_bytes: of every corpus as float32.
    """
    limit = settings.memory_gib * GIB
    if settings.keep == "memory" or (settings.keep == "auto" and sum(num_bytes.values()) <= limit):
        return frozenset()
    kept_bytes, streamed = 0, set()
    for corpus, size in sorted(num_bytes.items(), key=lambda item: item[1]):
        if settings.keep == "auto" and kept_bytes + size <= limit / 2:
            kept_bytes += size
        else:
            streamed.add(corpus)
    return frozenset(streamed)


def embedding_bytes(manifest: Mapping[str, Any]) -> int:
    return int(manifest["rows"]) * int(manifest["dim"]) * BYTES_PER_NUMBER


def is_mapped(embeddings: Matrix) -> bool:
    """Whether embeddings are a file that is read when it is indexed."""
    return isinstance(embeddings, np.memmap)


def release(embeddings: Matrix) -> None:
    """Let go of the pages of a mapped file that were read: they need not count as this process's memory."""
    pages = embeddings.base
    if is_mapped(embeddings) and isinstance(pages, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        pages.madvise(mmap.MADV_DONTNEED)


def cache_dir(experiment: Experiment) -> Path:
    """The local folder of an experiment's files."""
    if experiment.feed.cache is not None:
        return Path(experiment.feed.cache)
    if is_uri(experiment.store):
        return Path(tempfile.gettempdir()) / f"uml-feed-{os.getuid()}"
    return Path(local_path(experiment.store)) / "_feed"


def mapped_table(
    store: CorpusStore,
    cache: Path,
    on_wait: Callable[[], None] = lambda: None,
    only: npt.NDArray[np.int64] | None = None,
) -> CorpusTable:
    """A corpus with its embeddings in a file, equal to `store.load()` row by row; writes the file if need be.

    Args:
        store: of the corpus.
        cache: the local folder of such files.
        on_wait: called once where another process is writing the same file.
        only: the rows that will be read; the others are zeros, which take no room on the disk.

    Raises:
        InputError: as `CorpusStore.load`, or the disk has no room for the file.
    """
    manifest = store.embeddings_manifest()
    folder, content = cache / store.corpus / store.fingerprint, [manifest["parts"], manifest["rows_digest"], LOTS]
    if store.without is not None:
        folder = folder.with_name(f"{folder.name}-without-{store.without}")
    if only is not None:
        digest = hashlib.blake2b(only.tobytes(), digest_size=16).hexdigest()
        folder = folder.with_name(f"{folder.name}-rows-{digest}")  # of its own: a writer clears its folder
    files = folder / hash_of(content)
    if files.is_dir():  # as for most workers of a machine: a lease takes a tenth of a second
        return _open(files)
    with exclusive(LOCAL, f"{folder}.lease", on_wait):
        if not files.is_dir():
            num_rows = manifest["rows"] if only is None else len(only)
            _check_room(cache, store.corpus, embedding_bytes({**manifest, "rows": num_rows}))
            shutil.rmtree(folder, ignore_errors=True)  # of the corpus as it was, or half-written by a killed process
            temporary = folder / f"tmp-{uuid.uuid4().hex}"
            temporary.mkdir(parents=True)
            _write(store, manifest, temporary, only)
            temporary.rename(files)
        return _open(files)


def mapped_beside(source: Matrix, name: str, shape: tuple[int, int], fill: Callable[[Matrix], None]) -> Matrix:
    """A mapped file of float32 beside that of `source`, filled once under its name.

    Args:
        source: a mapped table.
        name: tells the content: a file of this name is taken as it is.
        shape: of the new table.
        fill: writes every row.
    """
    assert isinstance(source, np.memmap)
    file = Path(str(source.filename)).with_name(f"{name}.npy")
    if not file.is_file():
        temporary = file.with_name(f"tmp-{uuid.uuid4().hex}.npy")
        fill(np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape))
        temporary.rename(file)
    return np.lib.format.open_memmap(file, mode="r")


def _write(
    store: CorpusStore, manifest: Mapping[str, Any], directory: Path, only: npt.NDArray[np.int64] | None
) -> None:
    """Write the files of a corpus, one part in memory at a time."""
    shape = (int(manifest["rows"]), int(manifest["dim"]))
    np.lib.format.open_memmap(directory / EMBEDDINGS, mode="w+", dtype=np.float32, shape=shape)
    positions_N, start = store.row_positions(manifest), 0
    is_written_N = np.ones(shape[0], dtype=bool) if only is None else np.isin(positions_N, only)
    for part in manifest["parts"]:
        rows_RD = finite_matrix(store.read_part(part, ["embedding"])["embedding"], shape[1], store.directory)
        table_ND = np.lib.format.open_memmap(directory / EMBEDDINGS, mode="r+")  # anew: else all pages stay mapped
        part = slice(start, start + len(rows_RD))
        table_ND[positions_N[part][is_written_N[part]]] = rows_RD[is_written_N[part]]
        start += len(rows_RD)
    assert start == shape[0], (start, shape)
    labels = store.load_labels(manifest)
    assert labels.lots is not None, "rows of a store have ids"
    np.save(directory / LOTS, labels.lots)
    np.save(directory / LABEL_CODES, labels.label_codes)
    np.save(directory / SPLIT_CODES, labels.split_codes)
    names = {"label_codes": labels.label_names, "split_codes": labels.split_names}
    (directory / NAMES).write_text(json.dumps(names), encoding="utf-8")


def _open(files: Path) -> CorpusTable:
    names = json.loads((files / NAMES).read_text(encoding="utf-8"))
    return CorpusTable(
        np.lib.format.open_memmap(files / EMBEDDINGS, mode="r"),
        np.load(files / LABEL_CODES),
        tuple(names["label_codes"]),
        np.load(files / SPLIT_CODES),
        tuple(names["split_codes"]),
        np.load(files / LOTS),
    )


def _check_room(cache: Path, corpus: str, num_bytes: int) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    if num_bytes > free:
        raise InputError(
            f"corpus '{corpus}' is streamed from a file of {num_bytes / GIB:.1f} GiB, and {cache} has {free / GIB:.1f} "
            "GiB free; set feed.cache to a local folder with room, or raise feed.memory_gib"
        )
