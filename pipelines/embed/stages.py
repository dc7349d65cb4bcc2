"""How parts stream through `embed` and `predict` to the actors that hold the encoder.

In: parts, each the name of a spooled one or its rows. Out: what the actor makes of each. On a CPU an actor reads and
decodes its own parts, on one thread an actor: nothing is copied between processes, and no thread waits for another.
Beside GPUs, decode tasks on the other cores keep the actors fed.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import ray.data

from pipelines.embed.decoding import DecodedPart, decode_rows
from pipelines.ray_session import await_resources, num_cpus, num_gpus, quieten_ray_data, share_of
from uml_core.config import ClusterConfig, EmbedConfig, EncoderConfig
from uml_core.corpora.rows import Row
from uml_core.encoders import Encoder, build_encoder
from uml_core.errors import InputError
from uml_core.store.listing import RowSpool

Batch = dict[str, np.ndarray]
ReadPart = Callable[[Any], Sequence[Row]]
EncoderSettings = tuple[EncoderConfig, str]  # and its modality: what a task or an actor builds an encoder from
Encoders = EncoderSettings | Mapping[str, EncoderSettings]  # one for all parts, or each corpus's for parts CORPUS/NAME
# CPUs of a stage's worker, unequal on purpose: Ray Data would fuse equal ones into one actor, and decoding would stop
# while it encodes. Small, so that as many actors as cores leave room for Ray's own tasks.
DECODE_CPUS, ENCODE_CPUS = 0.25, 0.5
CORES_PER_ACTOR = 4  # on machines with more cores than this; weights are held once an actor


@dataclass(frozen=True)
class SpooledParts:
    """Reads the rows of a part CORPUS/NAME from its corpus's spool."""

    spools: Mapping[str, RowSpool]

    def __call__(self, part: str) -> Sequence[Row]:
        return self.spools[corpus_of(part)].read(part.rpartition("/")[2])


def corpus_of(part: str) -> str:
    return part.rpartition("/")[0]


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


@dataclass(frozen=True)
class Workers:
    """How many actors encode, how many tasks decode beside them (0: the actors do), on which device.

    `threads` are an actor's share of the cluster's CPUs.
    """

    actors: int
    decoders: int
    device: str
    threads: int
    nodes: str | None = None  # a custom resource of the nodes that they run on

    @classmethod
    def from_settings(cls, settings: EmbedConfig, *, num_parts: int, cluster: ClusterConfig) -> Workers:
        """What the settings come to on this cluster; Ray is running. Raises InputError where it has no GPU to use."""
        cpus, gpus = num_cpus(), 0 if settings.use_gpu is False else num_gpus()
        if settings.use_gpu is True and not gpus:
            wanted = 1 if settings.actors == "auto" else settings.actors
            gpus = await_resources("GPU", min(wanted, num_parts), wait_s=cluster.wait_s, nodes=cluster.embed_on)
            if not gpus:
                raise InputError(
                    "embed.use_gpu is true, but the cluster has no GPU; set cluster.wait_s to the seconds in which its "
                    "autoscaler adds one, or embed.use_gpu=false"
                )
        own = gpus or (cpus if cpus <= CORES_PER_ACTOR else cpus // CORES_PER_ACTOR)
        actors = min(own if settings.actors == "auto" else settings.actors, num_parts)
        beside = max(1, cpus - actors) if gpus else 0
        decoders, device = beside if settings.decoders == "auto" else settings.decoders, "cuda" if gpus else "cpu"
        return cls(actors, decoders, device, threads=max(1, cpus // actors), nodes=cluster.embed_on)


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
    quieten_ray_data()
    settings: Encoders = encoder if isinstance(encoder, Mapping) else (encoder.config, encoder.modality)
    dataset = ray.data.from_items([{"part": part} for part in parts], override_num_blocks=len(parts))
    if workers.decoders:
        dataset = dataset.map_batches(
            decode_part,
            batch_size=1,
            num_cpus=DECODE_CPUS,
            compute=ray.data.TaskPoolStrategy(size=workers.decoders),
            fn_kwargs={"encoder": settings, "read": read},
        )
    yield from dataset.map_batches(
        actor,
        batch_size=1,
        num_cpus=ENCODE_CPUS,
        num_gpus=1 if workers.device == "cuda" else 0,
        resources=share_of(workers.nodes),
        compute=ray.data.ActorPoolStrategy(size=workers.actors),
        fn_constructor_kwargs={"encoder": settings, "read": read, "workers": workers, **arguments},
    ).iter_rows()


def set_encoder_threads(workers: Workers) -> None:
    """Give an encode actor its share of the cores, at most this machine's: Ray gives a process one OpenMP thread."""
    if workers.device == "cpu":
        threads = min(os.cpu_count() or 1, workers.threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # for torch, if it is imported
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)
