"""Embedding in the test's own process, for tests that need a store and look at something else: no actor is started."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import torch
from ray import cloudpickle

from pipelines.command_line import Summary
from pipelines.embed import stages
from pipelines.embed import step as embed
from pipelines.embed.stages import EncoderSettings, ReadPart
from pipelines.embed.workers import Workers
from uml_core.config import Experiment
from uml_core.encoders import Encoder


def embed_here(experiment: Experiment) -> Summary:
    with (
        mock.patch.object(stages, "stream_parts", stream_here),
        mock.patch.object(embed, "ray_session", no_session),
        mock.patch.object(Workers, "from_settings", return_value=Workers(1, 0, "cpu", threads=os.cpu_count() or 1)),
    ):
        return embed.run(experiment)


@contextlib.contextmanager
def no_session(*, meanwhile: Callable[[], None]) -> Iterator[None]:
    meanwhile()
    yield


def stream_here(
    parts: Sequence[Any],
    actor: type,
    workers: Workers,
    *,
    encoder: Encoder | Mapping[str, EncoderSettings],
    read: ReadPart,
    arguments: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    """What `pipelines.embed.stages.stream_parts` yields, by one instance of the actor's class in this process.

    What an actor would be sent is pickled all the same.
    """
    threads, told = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    settings = encoder if isinstance(encoder, Mapping) else (encoder.config, encoder.modality)
    sent = cloudpickle.loads(cloudpickle.dumps((actor, settings, read, workers, arguments)))
    actor, settings, read, workers, arguments = sent
    made = actor(settings, read, workers, **arguments)
    for part in parts:
        yield {name: values[0] for name, values in made({"part": [part]}).items()}
    torch.set_num_threads(threads)  # an actor takes its share of the cores
    os.environ.pop("OMP_NUM_THREADS")
    if told is not None:
        os.environ["OMP_NUM_THREADS"] = told
