"""Batches: every row once, padded cost within its bound, and halved where memory runs out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uml_core.config import EncoderConfig
from uml_core.corpora.content import Raw
from uml_core.encoders import Decoded, Encoder, TokenSequences
from uml_core.encoders.base import plan_batches
from uml_core.errors import InputError

COSTS = st.lists(st.integers(0, 300), max_size=60)


class Greedy(Encoder):
    """Its rows are numbers; more than `fits` at once run out of memory."""

    modality, dim = "text", 1
    fits = 1_000_000

    def __init__(self, config: EncoderConfig | None = None) -> None:
        super().__init__(config or EncoderConfig(source="module", name="x:y"))
        self.batches: list[int] = []

    def decode(self, raw: Raw) -> Decoded:
        return np.array([float(raw)])

    def load(self, *, device: str = "cpu", precision: str = "float32") -> None:
        pass

    def encode(self, rows: Sequence[Decoded]) -> Any:
        self.batches.append(len(rows))
        if len(rows) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        tokens: TokenSequences = [np.asarray(row, dtype=np.float32)[None] for row in rows]
        return tokens if self.yields_tokens else np.concatenate(tokens)


@given(COSTS, st.integers(1, 20), st.integers(1, 100), st.booleans())
def test_every_row_is_in_one_batch_within_the_bound(costs: list[int], size: int, unit: int, equal: bool) -> None:
    batches = plan_batches(costs, batch_size=size, unit_cost=unit, equal_cost=equal)
    assert sorted(index for batch in batches for index in batch) == list(range(len(costs)))
    for batch in batches:
        longest = max(costs[index] for index in batch)
        assert len(batch) == 1 or len(batch) * longest <= size * unit
        assert not equal or {costs[index] for index in batch} == {longest}


@given(COSTS, st.integers(1, 20))
def test_without_a_unit_batches_are_so_many_rows(costs: list[int], size: int) -> None:
    batches = plan_batches(costs, batch_size=size)
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    assert [costs[index] for batch in batches for index in batch] == sorted(costs, reverse=True)


def test_long_rows_get_smaller_batches_and_short_ones_larger() -> None:
    costs = [10] * 20 + [100, 90]
    assert [len(batch) for batch in plan_batches(costs, batch_size=4, unit_cost=25)] == [1, 1, 10, 10]


def test_a_batch_that_does_not_fit_is_halved_and_one_row_that_does_not_is_told() -> None:
    greedy = Greedy()
    greedy.fits = 3
    rows = [greedy.decode(str(number)) for number in range(10)]
    np.testing.assert_array_equal(greedy.encode_all(rows, batch_size=10)[:, 0], np.arange(10))
    assert greedy.batches == [10, 5, 2, 3, 5, 2, 3]
    greedy.fits = 0
    with pytest.raises(InputError, match=r"one row of encoders.text 'x:y' does not fit"):
        greedy.encode_all(rows, batch_size=10)


def test_tokens_are_sequences_and_embeddings_an_array() -> None:
    pooled = Greedy()
    tokens = Greedy(EncoderConfig(source="module", name="x:y", pooling="tokens"))
    rows = [pooled.decode("1"), pooled.decode("2")]
    assert [sequence.tolist() for sequence in tokens.encode_all(rows, 1)] == [[[1.0]], [[2.0]]]
    assert pooled.encode_all(rows, 1).tolist() == [[1.0], [2.0]]
    assert pooled.encode_all([], 1).shape == (0, 1)
