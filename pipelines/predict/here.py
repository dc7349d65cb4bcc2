"""Predictions in the process that asks for them, on all its cores: of few inputs, before Ray would have started.

In: rows of new inputs. Out: what `on_ray` gives for them, part by part.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pipelines.embed.decoding import decode_rows
from pipelines.progress import StepProgress
from uml_core.corpora.rows import Row
from uml_core.encoders import Encoder
from uml_core.serving.predictor import Predictions, Predictor

PART_ROWS, BATCH_SIZE = 256, 32
Predicted = tuple[list[str], Predictions, list[tuple[Row, str]]]  # ids, their predictions, and what is unreadable
Item = TypeVar("Item")


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of `size` items, the last one shorter (itertools.batched, which Python 3.11 lacks)."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def predictions_here(predictor: Predictor, encoder: Encoder, rows: Sequence[Row]) -> Iterator[Predicted]:
    """Decode in threads and encode on all cores, with the same parts and batches as on Ray."""
    # Tokenizers refuse a second thread, and a user's own encoder need not expect one.
    is_safe = encoder.modality != "text" and encoder.config.source != "module"
    with (
        ThreadPoolExecutor(num_cores() if is_safe else 1) as pool,
        StepProgress("loading the encoder") as shown,
    ):
        # Not beside the decoding: folding a torch module replaces what all modules do when they are called.
        predictor.load_encoder(encoder)
        shown.counts("predicting", len(rows))
        for part in batched(rows, PART_ROWS):
            pieces = list(pool.map(lambda batch: decode_rows(batch, encoder), batched(part, BATCH_SIZE)))
            decoded = [each for piece in pieces for each in piece.decoded]
            result = predictor.classify_decoded(encoder, decoded, batch_size=BATCH_SIZE)
            shown.adds(len(part))
            rejected = [each for piece in pieces for each in piece.rejected]
            yield [row.id for piece in pieces for row in piece.rows], result, rejected


def num_cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
