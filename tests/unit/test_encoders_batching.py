"""Batches: every row once, padded cost within its bound, and a size that fits the memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uml_core.config import EncoderConfig
from uml_core.encoders import Decoded, Encoder, Raw, TokenSequences, choose_batch_size
from uml_core.encoders.base import plan_batches
from uml_core.errors import InputError

COSTS = st.lists(st.integers(0, 300), max_size=60)


class Greedy(Encoder):
    """Its rows are numbers; encoding one takes `bytes_a_row`, and more than `fits` at once run out of memory."""

    modality, dim = "text", 1
    bytes_a_row, fits = 0, 1_000_000

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
        np.ones(len(rows) * self.bytes_a_row, dtype=np.uint8)  # touched, so resident
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


def test_tokens_and_embeddings_have_a_method_each() -> None:
    pooled = Greedy()
    tokens = Greedy(EncoderConfig(source="module", name="x:y", pooling="tokens"))
    rows = [pooled.decode("1"), pooled.decode("2")]
    assert [sequence.tolist() for sequence in tokens.encode_all_tokens(rows, 1)] == [[[1.0]], [[2.0]]]
    with pytest.raises(ValueError, match="call encode_all_tokens"):
        tokens.encode_all(rows, 1)
    with pytest.raises(ValueError, match="call encode_all"):
        pooled.encode_all_tokens(rows, 1)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc")
def test_the_batch_size_is_what_fits_the_limit() -> None:
    greedy = Greedy()
    greedy.bytes_a_row = 8_000_000
    rows = [greedy.decode("1")]
    greedy.cpu_batch_size = 16
    assert choose_batch_size(greedy, rows, limit_bytes=10**9) == 16
    assert choose_batch_size(greedy, rows, limit_bytes=45_000_000) == 4  # 32 MB fit, 64 MB do not
    assert choose_batch_size(greedy, rows, limit_bytes=4_000_000) == 1
    assert choose_batch_size(greedy, [], limit_bytes=1) == 16


def test_a_gpu_batch_that_runs_out_of_memory_is_halved_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop around the measurement; what a GPU itself says is replaced, its out-of-memory error is torch's own."""
    greedy = Greedy()
    greedy.gpu_batch_size, greedy.fits = 64, 20
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 1000)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 1000 + 10 * greedy.batches[-1])
    assert choose_batch_size(greedy, [greedy.decode("1")], device="cuda", limit_bytes=10**9) == 16
    assert choose_batch_size(greedy, [greedy.decode("1")], device="cuda", limit_bytes=85) == 8
