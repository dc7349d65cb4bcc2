"""Rows of a mapped file, read ahead of training in the order in which it will ask for them.

In: a corpus's labelled rows in a file (`uml_core.store.mapped_table`), and which of them every coming step needs:
known, because mixing is a pure function of (seed, step). Out: the samples of any step, as if the table were in memory.

A thread reads the next block of steps while training uses the one before. Within a block rows are read in the
file's order, and the system hears of them in advance, so that the disk has many requests at once: 20 times as many
rows/s here as one after another (docs/measured.md).

Shape legend: B batch, R rows of a block, D embedding width.
"""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from uml_core.config import Experiment
from uml_core.data.labelled_rows import LabelledRows
from uml_core.data.subsets import Rows
from uml_core.feed.mixing import MixingPlan, SampleStream, rank_share
from uml_core.gradients.ranks import RankContext
from uml_core.store.mapped_table import GIB, Matrix, is_mapped, release

READ_ROWS = 1024  # asked of the disk at once
FIRST_BLOCK_ROWS, GROWTH = 4096, 2  # the first block is small, so that training begins; each next one is larger


@dataclass(frozen=True)
class Block:
    """The samples of some steps: rows (R, D), each once, and for every sample its row and label."""

    shifts: dict[int, int]  # of each step, from a position in the stream to a sample of the block
    rows_RD: Tensor
    row_of_sample: Tensor
    labels: Tensor


class GpuCopies:
    """Copies to a GPU on a stream of their own, from pinned memory: they run while the GPU computes.

    Torch keeps a pinned buffer until the copies from it are done, so each batch may have a new one.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @staticmethod
    def pinned(num_rows: int, dim: int) -> Tensor:
        """An empty pinned tensor (num_rows, dim)."""
        return torch.empty(num_rows, dim, pin_memory=True)

    def start(self, tensor: Tensor) -> Tensor:
        """What will be the tensor on the GPU, once it was waited for."""
        with torch.cuda.stream(self._stream):
            return tensor.pin_memory().to(self._device, non_blocking=True)

    def wait(self, *tensors: Tensor) -> None:
        """Let what the GPU does from now on wait for tensors whose copies were the last to start."""
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for tensor in tensors:
            tensor.record_stream(current)


class RowReader:
    """Reads rows of a mapped table; many at a time, without holding up Python's other threads."""

    def __init__(self, table_ND: Matrix) -> None:
        assert isinstance(table_ND, np.memmap)
        path, self._start = str(table_ND.filename), int(table_ND.offset)
        self._file, self._row_bytes = os.open(path, os.O_RDONLY), table_ND.shape[1] * table_ND.itemsize
        weakref.finalize(self, os.close, self._file)
        self._table_ND = np.memmap(path, np.float32, "r", self._start, table_ND.shape)
        pages = self._table_ND.base
        if isinstance(pages, mmap.mmap) and hasattr(mmap, "MADV_RANDOM"):
            pages.madvise(mmap.MADV_RANDOM)  # else the system reads megabytes around each row

    def read(self, rows: Rows, into_RD: Matrix) -> None:
        self._ask_for(rows[:READ_ROWS])
        for start in range(0, len(rows), READ_ROWS):
            stop = start + READ_ROWS
            self._ask_for(rows[stop : stop + READ_ROWS])
            np.take(self._table_ND, rows[start:stop], axis=0, out=into_RD[start:stop], mode="clip")  # no second buffer
            release(self._table_ND)

    def _ask_for(self, rows: Rows) -> None:
        if hasattr(os, "posix_fadvise"):  # not on every system; there, reading waits for one row after another
            for row in rows.tolist():
                offset = self._start + row * self._row_bytes
                os.posix_fadvise(self._file, offset, self._row_bytes, os.POSIX_FADV_WILLNEED)


class StreamedRows:
    """One corpus's endless sample stream over a mapped table: `uml_core.feed.embeddings.ResidentRows`, read ahead."""

    def __init__(
        self,
        experiment: Experiment,
        rows: LabelledRows,
        plan: MixingPlan,
        corpus: str,
        ranks: RankContext,
        *,
        memory_bytes: int,
    ) -> None:
        self._rows, self._plan, self._corpus, self._ranks = rows, plan, corpus, ranks
        self._max_steps = experiment.num_steps
        self._stream = SampleStream(corpus, len(rows), experiment.seed)
        self._reader = RowReader(rows.embeddings)
        row_bytes = rows.dim * rows.embeddings.itemsize
        self._largest = max(1, memory_bytes // (2 * row_bytes))  # one block is in use while the next is read
        self._size = min(FIRST_BLOCK_ROWS, self._largest)
        self._block: Block | None = None
        self._next: Future[Block] | None = None
        self._copies = GpuCopies(ranks.device) if ranks.device.type == "cuda" else None
        self._ahead: dict[int, tuple[int, Tensor, Tensor]] = {}  # of this step and the next one, by step

    def samples(self, step: int, positions: range) -> tuple[Tensor, Tensor]:
        if self._copies is None:
            return self._gathered(step, positions)
        coming = {step: self._ahead.get(step) or self._copied(step, self._copies)}
        self._copies.wait(*coming[step][1:])
        if self._block is not None and step + 1 in self._block.shifts:  # while the GPU is at this one
            coming[step + 1] = self._ahead.get(step + 1) or self._copied(step + 1, self._copies)
        self._ahead = coming
        start, embedding_BD, labels_B = coming[step]
        picked = slice(positions.start - start, positions.stop - start)
        return embedding_BD[picked], labels_B[picked]

    def _copied(self, step: int, copies: GpuCopies) -> tuple[int, Tensor, Tensor]:
        """All of this rank's samples of a step, on their way to the GPU, and the first one's position."""
        own = self._own(step)
        embedding_BD, labels_B = self._gathered(step, own, copies.pinned)
        return own.start, copies.start(embedding_BD), copies.start(labels_B)

    def _gathered(
        self, step: int, positions: range, empty: Callable[[int, int], Tensor] = torch.empty
    ) -> tuple[Tensor, Tensor]:
        block = self._block_of(step)
        first = positions.start + block.shifts[step]
        picked = slice(first, first + len(positions))
        into_BD = empty(len(positions), self._rows.dim)
        return torch.index_select(block.rows_RD, 0, block.row_of_sample[picked], out=into_BD), block.labels[picked]

    def _own(self, step: int) -> range:
        start, stop = self._plan.sample_range(self._corpus, step)
        return range(start, stop)[rank_share(stop - start, self._ranks.rank, self._ranks.world_size)]

    def _block_of(self, step: int) -> Block:
        if self._block is None or step not in self._block.shifts:
            self._block = None  # its memory is free for the block after the next
            block = None if self._next is None else self._next.result()
            if block is None or step not in block.shifts:  # training begins, or began anew at another step
                block = self._read(step, self._size)
            self._block, end = block, max(block.shifts) + 1
            self._size = min(GROWTH * self._size, self._largest)
            self._next = self._read_ahead(end, self._size) if end < self._max_steps else None
        return self._block

    def _read_ahead(self, step: int, num_rows: int) -> Future[Block]:
        future: Future[Block] = Future()

        def read() -> None:
            try:
                future.set_result(self._read(step, num_rows))
            except Exception as error:  # noqa: BLE001  raised where the block is asked for
                future.set_exception(error)

        threading.Thread(target=read, name=f"read {self._corpus}", daemon=True).start()  # ends with its process
        return future

    def _read(self, step: int, num_rows: int) -> Block:
        """This rank's samples of the steps from `step` on: of one at least, up to about a number of rows."""
        shifts: dict[int, int] = {}
        drawn, taken = [np.empty(0, dtype=np.int64)], 0
        for each in range(step, max(self._max_steps, step + 1)):
            own = self._own(each)
            if shifts and taken + len(own) > num_rows:
                break
            shifts[each] = taken - own.start
            drawn.append(self._stream.rows(own.start, own.stop))
            taken += len(own)
        samples = np.concatenate(drawn)
        rows, row_of_sample = np.unique(self._rows.rows[samples], return_inverse=True)
        rows_RD = torch.empty(len(rows), self._rows.dim)
        self._reader.read(rows, rows_RD.numpy())
        labels = torch.from_numpy(self._rows.labels[samples])
        return Block(shifts, rows_RD, torch.from_numpy(row_of_sample), labels)


def block_bytes(memory_gib: float, train: Mapping[str, LabelledRows]) -> dict[str, int]:
    """The memory for reading ahead of every mapped corpus: what the kept ones leave of the limit, half at least.

    It is shared by size, so that every corpus has the same part of itself in memory.
    """
    sizes = {corpus: rows.embeddings.nbytes for corpus, rows in train.items()}
    mapped = {corpus: sizes[corpus] for corpus, rows in train.items() if is_mapped(rows.embeddings)}
    limit = int(memory_gib * GIB)
    free = max(limit // 2, limit - sum(sizes.values()) + sum(mapped.values()))
    return {corpus: free * size // sum(mapped.values()) for corpus, size in mapped.items()}
