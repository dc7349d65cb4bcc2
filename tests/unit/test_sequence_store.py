"""Token sequences read back from the store, with those of pooled corpora as sequences of one token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from uml_core.corpora.rows import Row
from uml_core.errors import InputError
from uml_core.store.corpus_store import CorpusStore
from uml_core.store.sequence_table import load_sequences

FACTS: dict[str, Any] = {"encoder": {}, "dim": 2, "dtype": "float32", "tokens": True}


def rows(count: int, start: int = 0) -> list[Row]:
    return [Row(f"id-{index}", "ab"[index % 2], "train", text="x") for index in range(start, start + count)]


def written(directory: Path, parts: list[list[np.ndarray]], **facts: Any) -> CorpusStore:
    store = CorpusStore(str(directory), "x", "f" * 12)
    start = 0
    for part in parts:
        store.write_part(rows(len(part), start), part, [], dim=part[0].shape[-1])
        start += len(part)
    store.publish(store.footers(), {**FACTS, **facts})
    return store


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_sequences_of_several_parts_come_back_whole(tmp_path: Path, dtype: str) -> None:
    made = [np.full((length, 2), length, dtype=dtype) for length in (3, 1, 4, 2, 5)]
    table = load_sequences(written(tmp_path, [made[:2], made[2:4], made[4:]]))
    assert sorted(table.lengths.tolist()) == [1, 2, 3, 4, 5]
    for start, length, code in zip(table.starts, table.lengths, table.label_codes, strict=True):
        assert table.tokens[start : start + length].tolist() == [[length, length]] * length
        assert table.label_names[code] == ("a" if length in (3, 4, 5) else "b")
    assert (table.tokens.dtype, table.vocabulary) == (np.float32, None)


def test_discrete_tokens_keep_their_vocabulary(tmp_path: Path) -> None:
    store = written(tmp_path, [[np.array([[4.0], [2.0]], dtype=np.float32)]], dim=1, vocabulary=9)
    assert load_sequences(store).vocabulary == 9


def test_embeddings_are_sequences_of_one_token(tmp_path: Path) -> None:
    store = CorpusStore(str(tmp_path), "x", "f" * 12)
    store.write_part(rows(3), np.arange(6, dtype=np.float32).reshape(3, 2), [], dim=2)
    store.publish(store.footers(), {**FACTS, "tokens": False})
    table = load_sequences(store)
    assert (table.lengths.tolist(), table.starts.tolist()) == ([1, 1, 1], [0, 1, 2])
    assert table.tokens.tolist() == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ([np.array([[1.0, np.nan]], dtype=np.float32)], "NaN or infinity"),
        ([np.zeros((2, 2), np.float32), np.zeros((0, 2), np.float32)], "sequence without tokens"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(tmp_path: Path, part: list[np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_sequences(written(tmp_path, [part]))


def test_a_corpus_that_is_not_embedded_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run python -m pipelines.embed"):
        load_sequences(CorpusStore(str(tmp_path), "x", "f" * 12))
