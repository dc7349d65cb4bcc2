"""A table whose rows of split train were counted and not read: a row for each class stands for them.

In: a store, and how many rows its manifest counts. Out: a `CorpusTable` with `counts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from uml_core.store.corpus_store import CorpusStore
from uml_core.store.corpus_table import CorpusTable


def load_labels(store: CorpusStore, *, is_counted: bool) -> CorpusTable:
    """Read labels and splits of a corpus; its rows of split train may be counted."""
    if not is_counted:
        return store.load_labels(store.embeddings_manifest())
    rest = rest_of(store)
    return with_train_counted(store, rest.load_labels(rest.embeddings_manifest()))


def rest_of(store: CorpusStore) -> CorpusStore:
    """The rows of all splits but train."""
    return CorpusStore(store.uri, store.corpus, store.fingerprint, without="train")


def with_train_counted(store: CorpusStore, rest: CorpusTable) -> CorpusTable:
    """The table of `rest_of` a store, and behind its rows those of split train, as the manifest counts them."""
    return with_counted(rest, {"train": store.embeddings_manifest()["rows_per_class"].get("train", {})})


def with_counted(table: CorpusTable, counts: Mapping[str, Mapping[str, int]]) -> CorpusTable:
    """A table, and behind its rows one row for each split and class of rows that were counted and not read.

    Such a row has no embedding: its number is past those of the table.

    Args:
        table: what was read.
        counts: split -> label ("" for none) -> rows, as a store's manifest has them.
    """
    added = [(split, label, count) for split, classes in counts.items() for label, count in classes.items()]
    labels = _coded(table.label_names, table.label_codes, [label or None for _, label, _ in added])
    splits = _coded(table.split_names, table.split_codes, [split for split, _, _ in added])
    counted = np.array([count for _, _, count in added], dtype=np.int64)
    own = np.ones(len(table.label_codes), dtype=np.int64)
    return CorpusTable(table.embeddings, *labels, *splits, counts=np.concatenate([own, counted]))


def _coded(
    names: Sequence[str], codes: npt.NDArray[np.int64], added: Sequence[str | None]
) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Codes of rows and of some more, into the sorted names of both."""
    every = tuple(sorted({*names, *(name for name in added if name is not None)}))
    code: dict[str | None, int] = {None: -1, **{name: number for number, name in enumerate(every)}}
    own = np.array([code[name] for name in names] + [-1], dtype=np.int64)[codes]
    return np.concatenate([own, np.array([code[name] for name in added], dtype=np.int64)]), every
