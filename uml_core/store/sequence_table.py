"""Token sequences of a corpus as arrays, read from its store.

In: a `CorpusStore` in token mode, or in embedding mode: each embedding is then a sequence of one token. Out: one matrix
of all tokens and where each sequence lies in it, so that nothing is padded and nothing is copied a row at a time.

Shape legend: N sequences, R tokens of all sequences, D width of a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from uml_core.errors import InputError
from uml_core.store.corpus_store import CorpusStore
from uml_core.store.corpus_table import CorpusTable, finite_matrix, labelled, order_by_id


@dataclass(frozen=True)
class SequenceTable:
    """Sequences of one corpus: tokens (R, D) float32, where each starts and how long it is (N,), labels and splits.

    With a `vocabulary` tokens are discrete: (R, 1), whole numbers below it.
    """

    tokens: npt.NDArray[np.float32]
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    vocabulary: int | None
    label_codes: npt.NDArray[np.int64]  # -1 where there is no label
    label_names: tuple[str, ...]
    split_codes: npt.NDArray[np.int64]
    split_names: tuple[str, ...]
    counts: None = None  # as those of a `CorpusTable`: every sequence is read


def load_sequence_labels(store: CorpusStore) -> SequenceTable:
    """Read labels and splits in the order of `load_sequences`, and no token: each sequence is one that is `unread`."""
    manifest = store.finished_manifest()
    labels = store.load_labels(manifest)
    num_rows = len(labels.label_codes)
    return _sequences(manifest, labels, np.arange(num_rows), np.ones(num_rows, dtype=np.int64))


def load_sequences(store: CorpusStore) -> SequenceTable:
    """Read every part of the manifest, each once; rows are in the order of their ids, tokens stay where they lie.

    Raises:
        InputError: the corpus is not embedded by this encoder, holds NaN, or holds a sequence without tokens.
    """
    manifest = store.finished_manifest()
    column = "tokens" if manifest.get("tokens") else "embedding"
    table = store.read_columns(manifest, ["id", "label", "split", column])
    if column == "tokens":
        lengths = np.concatenate(
            [np.empty(0, np.int64), *(np.diff(chunk.offsets.to_numpy()) for chunk in table[column].chunks)]
        ).astype(np.int64)
        flat = pa.chunked_array([chunk.flatten() for chunk in table[column].chunks])
        tokens = finite_matrix(flat, manifest["dim"], store.directory)
    else:
        tokens = finite_matrix(table[column], manifest["dim"], store.directory)
        lengths = np.ones(len(tokens), dtype=np.int64)
    if len(lengths) and not lengths.min():
        raise InputError(f"store {store.directory} holds a sequence without tokens; delete it and embed again")
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    order = order_by_id(table)
    return _sequences(manifest, labelled(table, order, tokens), starts[order], lengths[order])


def _sequences(
    manifest: Mapping[str, Any], table: CorpusTable, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]
) -> SequenceTable:
    names = (table.label_codes, table.label_names, table.split_codes, table.split_names)
    return SequenceTable(table.embeddings, starts, lengths, manifest.get("vocabulary"), *names)
