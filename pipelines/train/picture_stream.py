"""Pictures or clips that do not fit in memory, decoded ahead by actors while earlier steps train.

In: the rows that every coming step needs, known in advance because mixing is a pure function of (seed, step). Out:
their pictures in that order. A resumed run starts its stream at its own step: nothing is skipped or shuffled again.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
import ray
import ray.train
from ray.exceptions import RayTaskError

from uml_core.config import EncoderConfig
from uml_core.corpora.rows import Row
from uml_core.data.subsets import Rows
from uml_core.encoders import build_encoder
from uml_core.encoders.torch_encoder import Arrays, TrainableEncoder
from uml_core.feed.pictures import decoded_picture

CHUNK_ROWS = 256  # pictures decoded by one task, or as many as
CHUNK_BYTES = 2**28  # hold
CHUNKS_AHEAD = 2  # of each decoder: the one it decodes, and the next, so that it never waits for training


class PictureStream:
    """Delivers pictures in the order of the steps; asking for others is a fault of ours.

    Plain actors and a queue. A Ray Data iterator did the same until its loop, a thread of the training process, was
    seen to spin whenever enough lay decoded: 440 ms of CPU a step where 175 are training's.
    """

    def __init__(self, coming: Iterator[Rows], raw: Sequence[Row], encoder: TrainableEncoder) -> None:
        row_bytes = encoder.example().nbytes
        self._chunks = chunks_of(coming, min(CHUNK_ROWS, CHUNK_BYTES // row_bytes))
        num_decoders, cpus_each = decoders()
        # A decoder whose node is lost starts again elsewhere; decoding a chunk twice does no harm.
        actor = ray.remote(num_cpus=cpus_each, max_restarts=-1, max_task_retries=-1)(Decoder)
        shared = ray.put(list(raw))
        actors = [actor.remote(shared, encoder.config, encoder.modality) for _ in range(num_decoders)]
        self._decoders = itertools.cycle(actors)
        self._ahead = CHUNKS_AHEAD * num_decoders
        self._decoding: deque[tuple[Rows, ray.ObjectRef]] = deque()
        self._rows: Rows = np.empty(0, dtype=np.int64)
        self._pictures: Arrays = np.empty(0, dtype=np.uint8)

    def __call__(self, rows: Rows) -> Arrays:
        """The pictures or clips of the rows that come next. Raises InputError for one that is damaged."""
        while len(self._rows) < len(rows):
            self._decode_ahead()
            next_rows, decoded = self._decoding.popleft()
            try:
                pictures: Arrays = ray.get(decoded)
            except RayTaskError as error:  # Ray's own shows the traceback of another process
                raise error.cause from None
            self._pictures = np.concatenate([self._pictures, pictures]) if len(self._rows) else pictures
            self._rows = np.concatenate([self._rows, next_rows])
        assert (self._rows[: len(rows)] == rows).all(), "the stream's order is not training's"
        taken = self._pictures[: len(rows)]
        self._rows, self._pictures = self._rows[len(rows) :], self._pictures[len(rows) :]
        return np.array(taken)  # what lies in Ray's object store is read-only

    def _decode_ahead(self) -> None:
        for rows in itertools.islice(self._chunks, self._ahead - len(self._decoding)):
            self._decoding.append((rows, next(self._decoders).decode.remote(rows)))


class Decoder:
    """An actor that decodes pictures by row number."""

    def __init__(self, raw: Sequence[Row], config: EncoderConfig, modality: str) -> None:
        encoder = build_encoder(config, modality)
        assert isinstance(encoder, TrainableEncoder)
        self._raw, self._encoder = raw, encoder

    def decode(self, rows: Rows) -> Arrays:
        """The pictures (N, H, W, 3) of some rows. Raises InputError for one that can no longer be read."""
        return np.stack([decoded_picture(self._raw[row], self._encoder) for row in rows])


def chunks_of(coming: Iterator[Rows], least: int = CHUNK_ROWS) -> Iterator[Rows]:
    """Join the steps' rows into chunks of at least so many, the last one shorter."""
    pending: list[Rows] = []
    for rows in coming:
        pending.append(rows)
        if sum(map(len, pending)) >= least:
            yield np.concatenate(pending)
            pending = []
    if pending:
        yield np.concatenate(pending)


def decoders() -> tuple[int, float]:
    """How many actors decode for one worker, and the CPUs of each: together what this run's workers leave."""
    num_workers = ray.train.get_context().get_world_size()
    free = max(0, int(ray.cluster_resources().get("CPU", 1)) - num_workers)
    each = max(1, -(-free // num_workers))  # rounded up: a share of 1.5 CPUs is two actors of 0.75
    return each, int(100 * free / (num_workers * each)) / 100
