"""Pictures or clips that do not fit in memory, read ahead by Ray Data: one iterator that lasts for the whole run.

In: the rows that every coming step needs, known in advance because mixing is a pure function of (seed, step). Out:
their pictures in that order. A resumed run starts its iterator at its own step: nothing is skipped or shuffled again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
import ray
import ray.train
from ray.data._internal.execution.execution_callback import ExecutionCallback  # of a public setting, but not public

from uml_core.config import EncoderConfig
from uml_core.corpora.rows import Row
from uml_core.data.subsets import Rows
from uml_core.encoders import build_encoder
from uml_core.encoders.torch_encoder import Arrays, TrainableEncoder
from uml_core.errors import InputError
from uml_core.feed.pictures import decoded_picture

CHUNK_ROWS = 256  # pictures decoded by one task, or as many as
CHUNK_BYTES = 2**28  # hold
PREFETCHED_CHUNKS = 2
PAUSE_S = 0.25


class PictureStream:
    """Delivers pictures in the order of the steps; asking for others is a fault of ours."""

    def __init__(self, coming: Iterator[Rows], raw: Sequence[Row], encoder: TrainableEncoder) -> None:
        row_bytes = encoder.example().nbytes
        chunks = [{"rows": rows} for rows in chunks_of(coming, min(CHUNK_ROWS, CHUNK_BYTES // row_bytes))]
        num_decoders, cpus_each = decoders()
        set_up_ray_data()
        self._blocks = iter(
            ray.data.from_items(chunks, override_num_blocks=len(chunks))
            .map_batches(
                DecodeChunk,
                batch_size=1,
                num_cpus=cpus_each,
                compute=ray.data.ActorPoolStrategy(size=num_decoders),
                fn_constructor_args=(ray.put(list(raw)), encoder.config, encoder.modality),
            )
            .iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=PREFETCHED_CHUNKS)
        )
        self._rows: Rows = np.empty(0, dtype=np.int64)
        self._pictures: Arrays = np.empty(0, dtype=np.uint8)

    def __call__(self, rows: Rows) -> Arrays:
        """Return the pictures or clips of the rows that come next. Raises InputError for one that is damaged."""
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


def set_up_ray_data() -> None:
    """Set up this process's Ray Data, which a stream has to itself: in order, quiet, its loop at rest between rounds.

    Its own bound on what is decoded ahead stays, half of the object store: with a limit of a few chunks it submits one
    task at a time, however many actors there are (measured: four decoded 2.7 chunks of 0.32 s a second).
    """
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.custom_execution_callback_classes = [Unhurried]
    context.enable_progress_bars = False


class Unhurried(ExecutionCallback):
    """Lets Ray Data's loop rest between its rounds.

    It runs in a thread of the training process. Whenever enough is decoded, it waits for nothing and goes round and
    round: it took a whole core, and Python's lock from training (440 ms of CPU a step where 175 are training's).
    """

    def on_execution_step(self, executor: object) -> None:
        """Rest as long as it waits for a task that is not done: less than a chunk takes, and others lie ready."""
        time.sleep(PAUSE_S)


class DecodeChunk:
    """Decodes the pictures of one chunk of rows."""

    def __init__(self, raw: ray.ObjectRef, config: EncoderConfig, modality: str) -> None:
        self._raw: Sequence[Row] = ray.get(raw) if isinstance(raw, ray.ObjectRef) else raw
        encoder = build_encoder(config, modality)
        assert isinstance(encoder, TrainableEncoder)
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


def chunks_of(coming: Iterator[Rows], least: int = CHUNK_ROWS) -> list[Rows]:
    """Join the steps' rows into chunks of at least so many, the last one shorter."""
    chunks: list[Rows] = []
    pending: list[Rows] = []
    for rows in coming:
        pending.append(rows)
        if sum(map(len, pending)) >= least:
            chunks.append(np.concatenate(pending))
            pending = []
    return [*chunks, *([np.concatenate(pending)] if pending else [])]


def decoders() -> tuple[int, float]:
    """Return how many actors decode for one worker, and the CPUs of each: together what this run's workers leave."""
    num_workers = ray.train.get_context().get_world_size()
    free = max(0, int(ray.cluster_resources().get("CPU", 1)) - num_workers)
    each = max(1, -(-free // num_workers))  # rounded up: a share of 1.5 CPUs is two actors of 0.75
    return each, int(100 * free / (num_workers * each)) / 100
