"""Predictions by actors of Ray Data that hold encoder and head: for any number of inputs, on a cluster and its GPUs."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterable, Iterator

import numpy as np
import ray
import ray.data

from pipelines.embed.stages import (
    Batch,
    EncoderSettings,
    ReadPart,
    decoded_part,
    stream_parts,
)
from pipelines.embed.workers import Workers, set_encoder_threads
from pipelines.predict.here import BATCH_SIZE, PART_ROWS, Predicted, batched
from pipelines.progress import StepProgress
from pipelines.ray_session import ray_session
from uml_core.config import ClusterConfig, EmbedConfig
from uml_core.corpora.rows import Row
from uml_core.encoders import Encoder, build_encoder
from uml_core.serving.predictor import Predictor

WINDOW_PARTS = 256  # listed at a time: neither the driver nor the object store holds all the inputs' places


def predictions_on_ray(predictor: Predictor, encoder: Encoder, rows: Iterable[Row]) -> Iterator[Predicted]:
    """Stream parts of the rows through actors, in order."""
    windows = batched(batched(rows, PART_ROWS), WINDOW_PARTS)
    with ray_session(), StepProgress("starting the encoder's processes") as shown, contextlib.ExitStack() as stack:
        listed, done = 0, 0
        options = ray.data.DataContext.get_current().execution_options  # the process's
        stack.callback(setattr, options, "preserve_order", options.preserve_order)
        options.preserve_order = True
        for window in windows:
            parts = [pickle.dumps(rows) for rows in window]
            listed += sum(map(len, window))  # so far
            shown.counts("predicting", listed)
            shown.adds(done)
            workers = Workers.from_settings(EmbedConfig(), num_parts=len(parts), cluster=ClusterConfig())
            for batch in stream_parts(
                parts,
                ClassifyPart,
                workers,
                encoder=encoder,
                read=pickle.loads,
                arguments={"predictor": predictor},
            ):
                ids, result, rejected = pickle.loads(batch["payload"])
                done += len(ids) + len(rejected)
                shown.adds(len(ids) + len(rejected))
                yield ids, result, rejected


class ClassifyPart:
    """An actor that holds encoder and head; it encodes and classifies one part at a time."""

    def __init__(self, encoder: EncoderSettings, read: ReadPart, workers: Workers, *, predictor: Predictor) -> None:
        set_encoder_threads(workers)
        loaded = build_encoder(*encoder)
        predictor.load_encoder(loaded, device=workers.device)
        self._predictor, self._encoder, self._read = predictor, loaded, read

    def __call__(self, batch: Batch) -> Batch:
        part = decoded_part(batch, self._encoder, self._read)
        result = self._predictor.classify_decoded(self._encoder, part.decoded, batch_size=BATCH_SIZE)
        payload = pickle.dumps(([row.id for row in part.rows], result, part.rejected))
        return {"payload": np.array([payload], dtype=object)}
