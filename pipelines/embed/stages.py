"""How parts stream through `embed` and `predict` to the actors that hold the encoder.

In: parts, each the name of a spooled one or its rows. Out: what the actor makes of each. On a CPU an actor reads and
decodes its own parts, on one thread an actor: nothing is copied between processes, and no thread waits for another.
Beside GPUs, decode tasks on the other cores keep the actors fed. Few parts need no actors: one of their class in the
process that asks makes the same of each.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.embed.decoding import DecodedPart, decode_rows
from pipelines.embed.workers import DECODE_CPUS, Workers
from pipelines.ray_session import quieten_ray_data, share_of
from uml_core.config import EncoderConfig
from uml_core.corpora.rows import Row
from uml_core.encoders import Encoder, build_encoder
from uml_core.errors import InputError
from uml_core.store.listing import RowSpool

if TYPE_CHECKING:
    import ray.data

Batch = dict[str, np.ndarray]
ReadPart = Callable[[Any], Sequence[Row]]
EncoderSettings = tuple[EncoderConfig, str]  # and its modality: what a task or an actor builds an encoder from
Encoders = EncoderSettings | Mapping[str, EncoderSettings]  # one for all parts, or each corpus's for parts CORPUS/NAME


@dataclass(frozen=True)
class SpooledParts:
    """Reads the rows of a part CORPUS/NAME from its corpus's spool."""

    spools: Mapping[str, RowSpool]

    def __call__(self, part: str) -> Sequence[Row]:
        return self.spools[corpus_of(part)].read(part.rpartition("/")[2])


def corpus_of(part: str) -> str:
    return part.partition("\n")[0].rpartition("/")[0]  # of a slice, the rows of a part are the lines behind its name


def decode_part(batch: Batch, encoder: Encoders, read: ReadPart) -> Batch:
    """Decode one part in a task of its own, for `decoded_part` in an actor (a Ray Data batch of one row)."""
    name = batch["part"][0]
    settings = encoder[corpus_of(name)] if isinstance(encoder, Mapping) else encoder
    part = decode_rows(read(name), build_encoder(*settings))
    return {**batch, "decoded": np.array([pickle.dumps(part, protocol=pickle.HIGHEST_PROTOCOL)], dtype=object)}


def decoded_part(batch: Batch, encoder: Encoder, read: ReadPart) -> DecodedPart:
    """The decoded part an actor was handed: from a decode task, or to be read and decoded here."""
    if "decoded" not in batch:
        return decode_rows(read(batch["part"][0]), encoder)
    part: DecodedPart = pickle.loads(batch["decoded"][0])
    return part


def stream_parts(
    parts: Sequence[Any],
    actor: type,
    workers: Workers,
    *,
    encoder: Encoder | Mapping[str, EncoderSettings],
    read: ReadPart,
    arguments: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    """Stream parts through Ray Data to the actors; yields what they return.

    `read` turns a part into rows: one block, the unit of work, of writing and of resuming. An instance of `actor` takes
    a batch of one part. What goes to the tasks that decode and to the actors are an encoder's settings, or, for parts
    CORPUS/NAME, those of each corpus.
    """
    settings: Encoders = encoder if isinstance(encoder, Mapping) else (encoder.config, encoder.modality)
    if not workers.actors:
        make = actor(settings, read, workers, **arguments)
        for part in parts:
            yield {name: values[0] for name, values in make({"part": [part]}).items()}
        return
    quieten_ray_data()
    import ray.data  # a second, and pandas

    dataset = ray.data.from_items([{"part": part} for part in parts], override_num_blocks=len(parts))
    yield from stream_dataset(dataset, actor, workers, encoder=settings, read=read, arguments=arguments)


def stream_dataset(
    dataset: ray.data.Dataset,
    actor: type,
    workers: Workers,
    *,
    encoder: Encoders,
    read: ReadPart,
    arguments: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    """The same of a data set with a part in each block, in column part.

    Raises:
        InputError: as a task or an actor has raised it; Ray's own shows its traceback.
    """
    import ray.data
    from ray.exceptions import RayTaskError

    if workers.decoders != 0:
        dataset = dataset.map_batches(
            decode_part,
            batch_size=1,
            num_cpus=DECODE_CPUS,
            compute=ray.data.TaskPoolStrategy(size=workers.decoders),
            fn_kwargs={"encoder": encoder, "read": read},
        )
    dataset = dataset.map_batches(
        actor,
        batch_size=1,
        num_cpus=workers.cpus,
        num_gpus=1 if workers.device == "cuda" else 0,
        resources=share_of(workers.nodes),
        compute=ray.data.ActorPoolStrategy(min_size=workers.actors, max_size=workers.most or workers.actors),
        fn_constructor_kwargs={"encoder": encoder, "read": read, "workers": workers, **arguments},
    )
    try:
        yield from dataset.iter_rows()
    except RayTaskError as error:
        if not isinstance(error, InputError):
            raise
        raise InputError(str(error.cause).partition(" Failed to apply UDF transform")[0]) from None  # Ray Data adds it
