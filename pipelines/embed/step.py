"""Corpora to embedding store (Ray Data).

In: the corpora of an experiment file. Out: STORE/CORPUS/FINGERPRINT with parts, manifest.json and rejected.parquet,
and an MLflow run with rows/s and the share of time in each stage.

    python -m pipelines.embed examples/demo.yaml

The driver lists a corpus once, as a stream, compares it with the keys of the rows in the store, and spools what is
missing in parts. Ray Data streams the parts to actors that hold the encoder (`pipelines.embed.stages`). A part is
written in one rename, so a killed run, started again, embeds only what is missing.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from pipelines.command_line import Summary
from pipelines.embed.stages import EncodePart, Workers, stream_parts
from pipelines.progress import loading, stage
from pipelines.ray_session import ray_session
from pipelines.stores import corpus_store
from pipelines.timings import add_workers, timed
from uml_core.config import Experiment
from uml_core.corpora.readers import rows_of
from uml_core.corpora.ready.adopt import ready_identity, stream_ready
from uml_core.encoders import Encoder, build_encoder, store_precision
from uml_core.errors import InputError
from uml_core.store.corpus_store import CorpusStore
from uml_core.store.listing import Listing
from uml_core.store.parts import PartFooter, Values

STAGES = ("read", "decode", "encode", "write")


def run(experiment: Experiment) -> Summary:
    """Embed what is not embedded yet; returns rows, rejected rows, rows/s and stage shares of each corpus."""
    with contextlib.ExitStack() as session:  # Ray starts with the first corpus that needs it, and stops after the last
        results = {corpus: embed_corpus(experiment, corpus, session) for corpus in experiment.corpora}
    if new := {corpus: facts for corpus, facts in results.items() if not facts["up_to_date"]}:
        with loading():
            from uml_core.tracking.writing import log_embedding  # heavy, and a rerun may have no use for it
        for facts in new.values():
            add_workers(facts["stage_s"])
        with stage("log", "writing to MLflow"):
            log_embedding(experiment, new)
    return Summary(_summary(results), {"store": experiment.store, "corpora": results})


def _summary(results: Mapping[str, Mapping[str, Any]]) -> str:
    head = f"{'corpus':<16}{'rows':>9}{'rejected':>10}{'rows/s':>9}" + "".join(f"{stage:>8}" for stage in STAGES)
    lines = [head]
    for corpus, facts in results.items():
        line = f"{corpus:<16}{facts['rows']:>9}{facts['rejected_rows']:>10}{facts['rows_per_s']:>9.0f}"
        line += "".join(f"{100 * facts['stage_share'][stage]:>6.0f} %" for stage in STAGES)
        state = "up to date" if facts["up_to_date"] else f"{facts['wall_s']:.1f} s"
        changes = [f"{facts[name]} {name}" for name in ("new", "changed", "removed") if facts.get(name)]
        lines.append(f"{line}  {', '.join([state, *changes])}")
    return "\n".join(lines)


def embed_corpus(experiment: Experiment, corpus: str, session: contextlib.ExitStack) -> dict[str, Any]:
    """Embed what is missing of one corpus; returns the summary's facts. Raises InputError past embed.max_rejected."""
    store = corpus_store(experiment, corpus)
    if experiment.encoder_of(corpus) is None:
        return _adopt_ready(experiment, corpus, store)
    encoder = build_encoder(experiment.encoder_of(corpus), experiment.corpora[corpus].modality)
    part_rows = encoder.part_rows if experiment.embed.part_rows == "auto" else experiment.embed.part_rows
    parts_before, listing = store.part_names(), _list(experiment, corpus, store, part_rows)
    if not listing.has_missing():
        manifest = store.read_manifest()
        if manifest is not None and store.holds_exactly(manifest, listing.keys):
            return _facts(manifest, up_to_date=True)
    with store.writing(lambda: _say_waiting(corpus, store)):
        if store.part_names() != parts_before:  # another run has written since: what it embedded is not missing now
            listing = _list(experiment, corpus, store, part_rows)
        return _embed_missing(experiment, corpus, store, encoder, listing, session)


def _list(experiment: Experiment, corpus: str, store: CorpusStore, part_rows: int) -> Listing:
    """Begin to list a corpus against its store, with progress where that takes long."""
    rows = rows_of(experiment, corpus)
    shown = tqdm(rows, desc=f"list {corpus}", unit="row", delay=2, leave=False, file=sys.stderr)
    return Listing(shown, store.stored_keys(), part_rows)


def _say_waiting(corpus: str, store: CorpusStore) -> None:
    print(f"corpus {corpus} is being embedded by another run into {store.directory}; waiting for it", file=sys.stderr)


@timed("encode")
def _embed_missing(
    experiment: Experiment,
    corpus: str,
    store: CorpusStore,
    encoder: Encoder,
    listing: Listing,
    session: contextlib.ExitStack,
) -> dict[str, Any]:
    """As the store's only writer: spool what is missing, stream it through the stages, settle and publish."""
    spool = store.spool()
    names = spool.write(listing.missing)
    progress = EmbedProgress(corpus, len(listing.keys), experiment.embed.max_rejected)
    if listing.first_fault is not None:  # before rows are read for nothing
        progress.check(listing.num_faults, f"{listing.first_fault.id}: {listing.first_fault.fault}")
    if names:
        session.enter_context(ray_session())
        workers = Workers.from_settings(experiment.embed, num_parts=len(names))
        arguments = {
            "store": (store.uri, corpus, store.fingerprint),
            "settings": experiment.embed,
            "precision": store_precision(experiment),
        }
        parts = stream_parts(names, EncodePart, workers, encoder=encoder, read=spool.read, arguments=arguments)
        with tqdm(total=listing.num_missing, desc=f"embed {corpus}", unit="row", file=sys.stderr) as bar:
            for part in parts:
                progress.add(part)
                bar.update(int(part["rows"]))
    settled = store.settle(store.footers(), listing.keys)
    lost = len(listing.keys) - len(settled.keys)
    if lost:
        raise RuntimeError(f"{lost} rows of corpus {corpus} are in no part of {store.directory}; run the step again")
    _check_rejected(progress, settled.parts)
    changed = listing.came_again(settled.stale_ids)
    facts = {
        "encoder": encoder.identity(),
        "dim": encoder.dim,
        "dtype": experiment.embed.dtype,
        "tokens": encoder.yields_tokens,
        "vocabulary": encoder.vocabulary,
        "precision": store_precision(experiment),
        **progress.facts(),
        "new": listing.num_missing - changed,
        "changed": changed,
        "removed": len(settled.stale_ids) - changed,
    }
    return _facts(store.publish(settled.parts, facts), up_to_date=False)


@timed("read")
def _adopt_ready(experiment: Experiment, corpus: str, store: CorpusStore) -> dict[str, Any]:
    """Take over embeddings that the user computed, chunk by chunk; the fingerprint names the files' content."""
    manifest = store.read_manifest()
    if manifest is not None:
        return _facts(manifest, up_to_date=True)
    config = experiment.corpora[corpus]
    with store.writing(lambda: _say_waiting(corpus, store)):
        progress = EmbedProgress(corpus, 0, experiment.embed.max_rejected)
        dim, vocabulary, names = 0, None, set()
        for chunk in tqdm(stream_ready(corpus, config), desc=f"adopt {corpus}", delay=2, file=sys.stderr):
            started, dim, vocabulary = time.perf_counter(), chunk.dim, chunk.vocabulary
            # Whole numbers keep float32: float16 holds them up to 2,048 only.
            dtype = experiment.embed.dtype if vocabulary is None else "float32"
            values: Values = [tokens.astype(dtype) for tokens in chunk.values]
            if config.format == "embeddings":
                values = chunk.embeddings.astype(dtype)
            rejected = [(row, row.fault or "") for row in chunk.rejected]
            names.add(store.write_part(chunk.rows, values, rejected, dim=dim))
            progress.stage_s["write"] += time.perf_counter() - started
            progress.finished.append((time.time(), len(chunk.rows) + len(chunk.rejected)))
            progress.rejected += len(chunk.rejected)
        parts = [footer for footer in store.footers() if footer.name in names]
        _check_rejected(progress, parts)
        facts = {
            "encoder": ready_identity(corpus, config),
            "dim": dim,
            "dtype": experiment.embed.dtype if vocabulary is None else "float32",
            "tokens": config.format != "embeddings",
            "vocabulary": vocabulary,
            "precision": "given",
            **progress.facts(),
        }
        return _facts(store.publish(parts, facts), up_to_date=False)


def _check_rejected(progress: EmbedProgress, parts: Sequence[PartFooter]) -> None:
    """Refuse a corpus with too many unreadable rows; its parts stay, so that a raised limit costs nothing."""
    progress.total = sum(len(part.keys) for part in parts)
    rejected = [row for part in parts for row in part.rejected]
    if rejected:
        progress.check(len(rejected), f"{rejected[0].id}: {rejected[0].reason}")


def _facts(manifest: Mapping[str, Any], *, up_to_date: bool) -> dict[str, Any]:
    names = (
        *("fingerprint", "dim", "rows", "rejected_rows", "rows_per_split", "rows_per_s", "steady_rows_per_s"),
        *("wall_s", "first_part_s", "stage_s", "stage_share", "encoded_rows", "repeated_inputs", "batch_size"),
        *("new", "changed", "removed"),
    )
    return {**{name: manifest[name] for name in names if name in manifest}, "up_to_date": up_to_date}


@dataclass
class EmbedProgress:
    """What the parts of this run amount to so far, and where the workers' seconds went: a bottleneck is to be seen."""

    corpus: str
    total: int  # rows of the corpus
    max_rejected: float  # share of them
    started_at: float = field(default_factory=time.time)
    rejected: int = 0
    encoded: int = 0
    batch_size: int = 0
    stage_s: Counter[str] = field(default_factory=Counter)
    finished: list[tuple[float, int]] = field(default_factory=list)  # when a part was done, and its rows
    first_of: dict[str, float] = field(default_factory=dict)  # when each actor was done with its first part

    def add(self, part: Mapping[str, Any]) -> None:
        """Take in what EncodePart says of a part. Raises InputError as soon as too many rows are unreadable."""
        self.stage_s.update({stage: float(part[f"{stage}_s"]) for stage in STAGES})
        done_at = float(part["finished_at"])
        self.finished.append((done_at, int(part["rows"])))
        self.first_of[str(part["actor"])] = min(done_at, self.first_of.get(str(part["actor"]), done_at))
        self.encoded += int(part["encoded"])
        self.batch_size = int(part["batch_size"])
        self.rejected += int(part["rejected"])
        self.check(self.rejected, str(part["first_reject"]))

    def check(self, rejected: int, first: str) -> None:
        """Raise InputError where more rows are unreadable than may be."""
        if rejected > self.max_rejected * self.total:
            raise InputError(
                f"corpora.{self.corpus}: {rejected} of {self.total} rows cannot be read ({rejected / self.total:.1%}; "
                f"embed.max_rejected is {self.max_rejected:.0%}); first {first}; mend them, or raise the limit (what "
                "is embedded stays)"
            )

    def facts(self) -> dict[str, Any]:
        """The manifest's entries. The steady rate starts when every actor has finished its first part."""
        ordered = sorted(self.finished)
        ready_at = max(self.first_of.values(), default=ordered[0][0] if ordered else 0.0)
        rows = sum(rows for _, rows in ordered)
        later_rows = sum(rows for done_at, rows in ordered if done_at > ready_at)
        steady_s = ordered[-1][0] - ready_at if later_rows else 0.0
        first_part_s = ordered[0][0] - self.started_at if ordered else 0.0
        wall_s, total_s = time.time() - self.started_at, sum(self.stage_s.values())
        return {
            "wall_s": round(wall_s, 3),
            "rows_per_s": round(rows / wall_s, 2) if wall_s else 0.0,
            "steady_rows_per_s": round(later_rows / steady_s, 2) if steady_s else None,
            "first_part_s": round(first_part_s, 3),
            "stage_s": {stage: round(self.stage_s[stage], 3) for stage in STAGES},
            "stage_share": {stage: round(self.stage_s[stage] / total_s, 4) if total_s else 0.0 for stage in STAGES},
            "encoded_rows": self.encoded,
            "repeated_inputs": rows - self.rejected - self.encoded,
            "batch_size": self.batch_size,
        }
