"""Pictures that do not fit in memory, read ahead by Ray Data: one iterator that lasts for the whole run.

In: the rows that every coming step needs, known in advance because mixing is a pure function of (seed, step). Out:
their pictures in that order. A resumed run starts its iterator at its own step: nothing is skipped or shuffled again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import ray

from uml_core.corpora.rows import Row
from uml_core.corpora.subsets import Rows
from uml_core.encoders.image import PixelEncoder
from uml_core.errors import InputError
from uml_core.pictures import Pixels, decoded_picture

CHUNK_ROWS = 256  # pictures decoded by one task
DECODE_CPUS = 0.5
PREFETCHED_BLOCKS = 2


class PictureStream:
    """Delivers pictures in the order of the steps; asking for others is a fault of ours."""

    def __init__(self, coming: Iterator[Rows], raw: Sequence[Row], encoder: PixelEncoder) -> None:
        chunks = [{"rows": rows} for rows in chunks_of(coming)]
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        self._blocks = iter(
            ray.data.from_items(chunks, override_num_blocks=len(chunks))
            .map_batches(
                DecodeChunk,
                batch_size=1,
                num_cpus=DECODE_CPUS,
                compute=ray.data.ActorPoolStrategy(size=num_decoders()),
                fn_constructor_args=(ray.put(list(raw)), encoder),
            )
            .iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=PREFETCHED_BLOCKS)
        )
        self._rows: Rows = np.empty(0, dtype=np.int64)
        self._pictures: Pixels = np.empty(0, dtype=np.uint8)

    def __call__(self, rows: Rows) -> Pixels:
        """Return the pictures (B, H, W, 3) of the rows that come next. Raises InputError for one that is damaged."""
        while len(self._rows) < len(rows):
            block = next(self._blocks)
            if block["mistake"][0]:
                raise InputError(str(block["mistake"][0]))
            started = len(self._rows) > 0
            self._pictures = np.concatenate([self._pictures, block["picture"]]) if started else block["picture"]
            self._rows = np.concatenate([self._rows, block["row"]])
        assert (self._rows[: len(rows)] == rows).all(), "the stream's order is not training's"
        pictures = self._pictures[: len(rows)]
        self._rows, self._pictures = self._rows[len(rows) :], self._pictures[len(rows) :]
        return np.array(pictures)  # a block of Ray's is read-only


class DecodeChunk:
    """Decodes the pictures of one chunk of rows."""

    def __init__(self, raw: ray.ObjectRef, encoder: PixelEncoder) -> None:
        self._raw: Sequence[Row] = ray.get(raw) if isinstance(raw, ray.ObjectRef) else raw
        self._encoder = encoder

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return columns row (N,), picture (N, H, W, 3) and mistake (N,): empty, or why a picture cannot be read.

        What an actor raises, Ray Data wraps into an error of its own, and logs with a traceback.
        """
        (rows,) = batch["rows"]
        try:
            pictures, mistake = np.stack([decoded_picture(self._raw[row], self._encoder) for row in rows]), ""
        except InputError as error:
            pictures, mistake = np.zeros((len(rows), 1, 1, 3), dtype=np.uint8), str(error)
        return {"row": rows, "picture": pictures, "mistake": np.full(len(rows), mistake)}


def chunks_of(coming: Iterator[Rows]) -> list[Rows]:
    """Join the steps' rows into chunks of at least CHUNK_ROWS, the last one shorter."""
    chunks: list[Rows] = []
    pending: list[Rows] = []
    for rows in coming:
        pending.append(rows)
        if sum(map(len, pending)) >= CHUNK_ROWS:
            chunks.append(np.concatenate(pending))
            pending = []
    return [*chunks, *([np.concatenate(pending)] if pending else [])]


def num_decoders() -> int:
    """Return how many actors decode for one worker: those that fit beside the workers of this run."""
    free = ray.cluster_resources().get("CPU", 1) - ray.train.get_context().get_world_size()
    share = free / ray.train.get_context().get_world_size()
    return max(1, int(share / DECODE_CPUS))
