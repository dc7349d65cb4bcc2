"""Corpora to embedding store (Ray Data).

In: the corpora of an experiment file. Out: STORE/CORPUS/FINGERPRINT with parts, manifest.json and rejected.parquet.

    python -m pipelines.embed examples/demo.yaml

Rows are listed on the driver and cut into parts. Ray Data streams the missing parts through two stages: `decode_part`
(tasks on any CPU) and `EncodePart` (actors that hold the encoder). A part is written in one rename, so a killed
run goes on where it stopped, and a finished one does nothing and does not start Ray.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
import torch
from tqdm import tqdm

from pipelines.runtime import Summary, experiment_parser, num_gpus, ray_session, step_main
from uml_core.config import Experiment, hash_of
from uml_core.corpora.readers import list_rows
from uml_core.corpora.ready import read_ready_embeddings, ready_identity
from uml_core.encoders import Encoder, RowError, build_encoder, fingerprint, resolve_precision
from uml_core.errors import InputError
from uml_core.store import CorpusStore, Part, RejectedRow, plan_parts

Batch = dict[str, np.ndarray]


@dataclass
class StageTimes:
    """Where the time went: seconds of each stage summed over parts, and the rate once the encoder is loaded."""

    started_at: float
    stage_s: Counter[str] = field(default_factory=Counter)
    finished: list[tuple[float, int]] = field(default_factory=list)  # when a part was done, and its rows

    def add(self, row: Mapping[str, Any]) -> None:
        """Take in what EncodePart says of a part."""
        self.stage_s.update({name: float(row[f"{name}_s"]) for name in ("decode", "encode", "write")})
        self.finished.append((float(row["finished_at"]), int(row["rows"])))

    def facts(self) -> dict[str, Any]:
        """Return the manifest's entries. The steady rate leaves out everything up to the first finished part."""
        ordered = sorted(self.finished)
        later_rows = sum(rows for _, rows in ordered[1:])
        steady_s = ordered[-1][0] - ordered[0][0] if later_rows else 0.0
        first_part_s = ordered[0][0] - self.started_at if ordered else 0.0
        stage_s = {"until_first_part": first_part_s, **self.stage_s}
        return {
            "stage_s": {name: round(seconds, 3) for name, seconds in stage_s.items()},
            "steady_rows_per_s": round(later_rows / steady_s, 2) if steady_s else None,
        }


def main(argv: list[str] | None = None) -> int:
    """Embed every corpus of an experiment."""
    parser = experiment_parser("embed", description="Embed every corpus of an experiment into the store.")
    return step_main(parser, lambda experiment, _: run(experiment), argv)


def run(experiment: Experiment) -> Summary:
    """Embed what is not embedded yet; returns rows, rejected rows and rows/s of each corpus."""
    with contextlib.ExitStack() as session:  # Ray starts with the first corpus that needs it, and stops after the last
        results = {corpus: embed_corpus(experiment, corpus, session) for corpus in experiment.corpora}
    lines = [f"{'corpus':<16}{'rows':>9}{'rejected':>10}{'rows/s':>9}  "]
    for corpus, facts in results.items():
        state = "up to date" if facts["up_to_date"] else f"{facts['wall_s']:.1f} s"
        lines.append(f"{corpus:<16}{facts['rows']:>9}{facts['rejected_rows']:>10}{facts['rows_per_s']:>9.0f}  {state}")
    return Summary("\n".join(lines), {"store": experiment.store, "corpora": results})


def corpus_store(experiment: Experiment, corpus: str) -> CorpusStore:
    """Return the store folder of a corpus under the experiment's encoder and settings."""
    return CorpusStore(experiment.store, corpus, corpus_fingerprint(experiment, corpus))


def corpus_fingerprint(experiment: Experiment, corpus: str) -> str:
    """Return the fingerprint of a corpus's embeddings: encoder, weights, preprocessing, dtype and precision."""
    config = experiment.encoder_of(corpus)
    if config is None:
        return hash_of(ready_identity(corpus, experiment.corpora[corpus]))
    encoder = build_encoder(config, experiment.corpora[corpus].modality)
    return fingerprint(encoder, dtype=experiment.embed.dtype, precision=embedding_precision(experiment))


def corpus_fingerprints(experiment: Experiment) -> dict[str, str]:
    """Return the fingerprint of every corpus."""
    return {corpus: corpus_fingerprint(experiment, corpus) for corpus in experiment.corpora}


def embed_corpus(experiment: Experiment, corpus: str, session: contextlib.ExitStack) -> dict[str, Any]:
    """Embed one corpus; returns the summary's facts. Raises InputError past embed.max_rejected."""
    store = corpus_store(experiment, corpus)
    if experiment.encoder_of(corpus) is None:
        return _adopt_ready(experiment, corpus, store)
    parts = plan_parts(list_rows(corpus, experiment.corpora[corpus]), experiment.embed.part_rows)
    keys = [part.key for part in parts]
    manifest = store.read_manifest()
    if manifest is not None and manifest["parts"] == keys:
        return _facts(manifest, up_to_date=True)
    started = time.perf_counter()
    missing = [part for part in parts if not store.part_exists(part.key)]
    encoder = build_encoder(experiment.encoder_of(corpus), experiment.corpora[corpus].modality)
    if missing:
        session.enter_context(ray_session())
    times = _encode_parts(experiment, corpus, encoder, missing) if missing else StageTimes(time.time())
    wall_s = time.perf_counter() - started
    encoded_rows = sum(len(part.rows) for part in missing)
    facts = {
        "encoder": encoder.identity(),
        "dim": encoder.dim,
        "dtype": experiment.embed.dtype,
        "precision": embedding_precision(experiment),
        "wall_s": round(wall_s, 3),
        "rows_per_s": round(encoded_rows / wall_s, 2),
        **times.facts(),
    }
    return _finish(experiment, corpus, store, keys, facts)


def _adopt_ready(experiment: Experiment, corpus: str, store: CorpusStore) -> dict[str, Any]:
    manifest = store.read_manifest()
    if manifest is not None:
        return _facts(manifest, up_to_date=True)
    started = time.perf_counter()
    config = experiment.corpora[corpus]
    ready = read_ready_embeddings(corpus, config)
    key = store.fingerprint
    store.write_part(key, ready.rows, ready.embeddings.astype(experiment.embed.dtype), ready.rejected)
    wall_s = time.perf_counter() - started
    facts = {
        "encoder": ready_identity(corpus, config),
        "dim": int(ready.embeddings.shape[1]),
        "dtype": experiment.embed.dtype,
        "precision": "given",
        "wall_s": round(wall_s, 3),
        "rows_per_s": round(len(ready.rows) / wall_s, 2),
        "stage_s": {},
        "steady_rows_per_s": None,
    }
    return _finish(experiment, corpus, store, [key], facts)


def _finish(
    experiment: Experiment, corpus: str, store: CorpusStore, keys: Sequence[str], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Refuse a corpus with too many unreadable rows, else write the manifest that makes the parts visible."""
    rejected = store.rejected_in(keys)
    total = rejected.total_rows
    share = len(rejected.rows) / total
    if share > experiment.embed.max_rejected or len(rejected.rows) == total:
        first = rejected.rows[0]
        raise InputError(
            f"corpora.{corpus}: {len(rejected.rows)} of {total} rows cannot be read ({share:.1%}; embed.max_rejected "
            f"is {experiment.embed.max_rejected:.1%}), first {first.id}: {first.reason}; mend them or raise the limit"
        )
    return _facts(store.finalise(keys, facts), up_to_date=False)


def _facts(manifest: Mapping[str, Any], *, up_to_date: bool) -> dict[str, Any]:
    names = (
        "fingerprint",
        "dim",
        "rows",
        "rejected_rows",
        "rows_per_split",
        "rows_per_s",
        "steady_rows_per_s",
        "wall_s",
        "stage_s",
    )
    return {**{name: manifest[name] for name in names}, "up_to_date": up_to_date}


def embedding_precision(experiment: Experiment) -> str:
    """Return the arithmetic the encoder runs in here."""
    return resolve_precision(experiment.embed.precision, "cuda" if torch.cuda.is_available() else "cpu")


def _encode_parts(experiment: Experiment, corpus: str, encoder: Encoder, parts: Sequence[Part]) -> StageTimes:
    """Stream parts through decode tasks and encode actors; returns where the time went."""
    times = StageTimes(time.time())
    ray.data.DataContext.get_current().enable_progress_bars = False
    gpus_per_actor = 1 if num_gpus() else 0
    rows = [{"part": pickle.dumps(part)} for part in parts]
    dataset = (
        # One block a part: a part is the unit of work, of writing and of resuming.
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .map_batches(decode_part, batch_size=1, num_cpus=0.5, fn_kwargs={"encoder": encoder})
        .map_batches(
            EncodePart,
            batch_size=1,
            # Half a CPU each, so that decoding runs beside encoding even on a single core.
            num_cpus=0.5,
            num_gpus=gpus_per_actor,
            compute=ray.data.ActorPoolStrategy(size=min(experiment.embed.actors, len(parts))),
            fn_constructor_kwargs={
                "encoder": encoder,
                "store": (experiment.store, corpus, corpus_fingerprint(experiment, corpus)),
                "settings": experiment.embed,
                "precision": embedding_precision(experiment),
                "device": "cuda" if gpus_per_actor else "cpu",
            },
        )
    )
    total = sum(len(part.rows) for part in parts)
    with tqdm(total=total, desc=f"embed {corpus}", unit="row", file=sys.stderr) as bar:
        for row in dataset.iter_rows():
            bar.update(int(row["rows"]))
            times.add(row)
    return times


def decode_part(batch: Batch, encoder: Encoder) -> Batch:
    """Read and decode the rows of one part; an unreadable row becomes a rejected row with its reason."""
    started = time.perf_counter()
    part: Part = pickle.loads(batch["part"][0])
    kept, decoded, rejected = [], [], []
    for row in part.rows:
        try:
            decoded.append(encoder.decode(row.read()))
            kept.append(row)
        except RowError as error:
            rejected.append(RejectedRow(row.id, row.label, row.split, str(error)))
    payload = pickle.dumps((part.key, kept, decoded, rejected), protocol=pickle.HIGHEST_PROTOCOL)
    return {"payload": np.array([payload], dtype=object), "decode_s": np.array([time.perf_counter() - started])}


def set_encoder_threads(*, actors: int, device: str) -> None:
    """Share this machine's cores among the encode actors: Ray gives a process one OpenMP thread by default."""
    if device == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // actors))


class EncodePart:
    """An actor that holds the encoder; it encodes one part at a time and writes it into the store."""

    def __init__(
        self, encoder: Encoder, store: tuple[str, str, str], settings: Any, precision: str, device: str
    ) -> None:
        set_encoder_threads(actors=settings.actors, device=device)
        self._encoder, self._settings = encoder, settings
        self._store = CorpusStore(*store)
        self._encoder.load(device=device, precision=precision)

    def __call__(self, batch: Batch) -> Batch:
        """Encode and write one decoded part; returns its counts and seconds."""
        key, kept, decoded, rejected = pickle.loads(batch["payload"][0])
        started = time.perf_counter()
        embeddings = self._encoder.encode_all(decoded, self._settings.batch_size)
        encoded = time.perf_counter()
        self._store.write_part(key, kept, embeddings.astype(self._settings.dtype), rejected)
        written = time.perf_counter()
        return {
            "rows": np.array([len(kept) + len(rejected)]),
            "decode_s": batch["decode_s"],
            "encode_s": np.array([encoded - started]),
            "write_s": np.array([written - encoded]),
            "finished_at": np.array([time.time()]),
        }


if __name__ == "__main__":
    raise SystemExit(main())
