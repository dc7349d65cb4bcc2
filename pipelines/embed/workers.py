"""How many processes encode and decode for `embed` and `predict`, on which device, and what Ray reserves for each.

On a CPU an actor has whole CPUs of its own, so that as many run as there is room for, also on nodes that join.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from pipelines.ray_session import await_resources, node_cpus, num_gpus
from uml_core.config import ClusterConfig, EmbedConfig
from uml_core.errors import InputError

# CPUs of a stage's worker, unequal on purpose: Ray Data would fuse equal ones into one actor, and decoding would stop
# while it encodes. One core has room for both: neither waits for the other for ever.
DECODE_CPUS, ENCODE_CPUS = 0.49, 0.5
CORES_PER_ACTOR = 4  # on machines with more cores than this; weights are held once an actor


@dataclass(frozen=True)
class Workers:
    """How many actors encode, how many tasks decode beside them, on which device.

    `threads` are an actor's share of the CPUs. `actors` is their number at the start; they become up to `most` as
    nodes join (None: the number is fixed).
    """

    actors: int
    decoders: int | None  # 0: the actors decode; None: as many as there is room for
    device: str
    threads: int | None  # None: what the process has
    nodes: str | None = None  # a custom resource of the nodes that they run on
    cpus: float = ENCODE_CPUS  # that Ray reserves for an actor
    most: int | None = None

    @classmethod
    def from_settings(cls, settings: EmbedConfig, *, num_parts: int, cluster: ClusterConfig) -> Workers:
        """What the settings come to on this cluster; Ray is running. Raises InputError where it has no GPU to use."""
        gpus, auto = 0 if settings.use_gpu is False else num_gpus(cluster.embed_on), settings.actors == "auto"
        if settings.use_gpu is True and not gpus:
            wanted = 1 if settings.actors == "auto" else settings.actors
            gpus = await_resources("GPU", min(wanted, num_parts), wait_s=cluster.wait_s, nodes=cluster.embed_on)
            if not gpus:
                raise InputError(
                    "embed.use_gpu is true, but the cluster has no GPU; set cluster.wait_s to the seconds in which its "
                    "autoscaler adds one, or embed.use_gpu=false"
                )
        cpus = node_cpus(cluster.embed_on)
        cores = cores_per_actor(min(cpus))
        own = gpus or sum(each // cores for each in cpus)
        actors = min(own if settings.actors == "auto" else settings.actors, num_parts)
        device, threads = "cuda" if gpus else "cpu", max(1, sum(cpus) // actors)
        beside = None if gpus and auto else max(1, sum(cpus) - actors) if gpus else 0
        decoders = beside if settings.decoders == "auto" else settings.decoders
        if not auto or (decoders and not gpus):  # where actors took all CPUs, no task could run beside them
            return cls(actors, decoders, device, threads, cluster.embed_on)
        return cls(actors, decoders, device, threads, cluster.embed_on, ENCODE_CPUS if gpus else cores, num_parts)


HERE = Workers(actors=0, decoders=0, device="cpu", threads=None)  # the process that asks, in place of actors


def cores_per_actor(cpus: int) -> int:
    """Of a node's CPUs: one, or on a larger node what as many actors as it is to have leave each."""
    return 1 if cpus <= CORES_PER_ACTOR else cpus // (cpus // CORES_PER_ACTOR)


def set_encoder_threads(workers: Workers) -> None:
    """Give an encode actor its share of the cores, at most this machine's: Ray gives a process one OpenMP thread."""
    if workers.device == "cpu" and workers.threads is not None:
        threads = min(os.cpu_count() or 1, workers.threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # for torch, if it is imported
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)
