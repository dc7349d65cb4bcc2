"""Corpora to embedding store: on Ray Data, or, few rows, in this process.

In: the corpora of an experiment file. Out: STORE/CORPUS/FINGERPRINT with parts, manifest.json and rejected.parquet,
and an MLflow run with rows/s and the share of time in each stage.

    python -m pipelines.embed examples/demo.yaml

The driver lists each corpus once, as a stream, compares it with the keys of the rows in the store, and spools what is
missing in parts. Ray Data streams the parts of all corpora, one after the other, to actors that hold the encoders
(`pipelines.embed.stages`). A part is written in one rename, so a killed run, started again, embeds only what is
missing. Where nothing is missing, neither torch nor Ray Data is imported. Few missing rows are encoded before Ray would
have started. A corpus of very many shards, tables or folders is listed by many tasks instead, beside encoding
(`pipelines.embed.slices`).
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipelines.command_line import Summary
from pipelines.embed.adopt import adopt_ready
from pipelines.embed.decoding import HERE_ROWS, is_elsewhere
from pipelines.embed.facts import EmbedProgress, check_rejected, facts_of, summary
from pipelines.embed.slice_counts import num_slices, sliced_store, unchanged_manifest
from pipelines.progress import StepProgress, loading, stage
from pipelines.ray_session import ray_session
from pipelines.stores import corpus_store
from pipelines.timings import add_workers, timed
from uml_core.config import Experiment
from uml_core.corpora.readers import rows_of
from uml_core.encoders import build_encoder, store_precision
from uml_core.store.listing import Listing
from uml_core.tracking.uri import check_tracking

FIRST_SHARE = 8  # of a full part: so that the first is soon done, and all actors have work of a small corpus


def run(experiment: Experiment) -> Summary:
    """Embed what is not embedded yet; returns rows, rejected rows, rows/s and stage shares of each corpus."""
    results: dict[str, dict[str, Any]] = {}
    try:
        with StepProgress("listing the corpora") as shown:
            embed_corpora(experiment, list(experiment.corpora), shown, results)
    except Exception:
        with contextlib.suppress(Exception):  # what ended the step is what is said
            _log_new(experiment, results)
        raise
    _log_new(experiment, results)
    results = {corpus: results[corpus] for corpus in experiment.corpora}
    return Summary(summary(results), {"store": experiment.store, "corpora": results})


def _log_new(experiment: Experiment, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Log what this run has embedded, and what a run has that was killed before it could."""
    stores = {corpus: corpus_store(experiment, corpus) for corpus in results}
    own = list[str]()
    for corpus, facts in results.items():
        if facts["up_to_date"] and stores[corpus].is_unlogged():
            with stores[corpus].writing(lambda: None, wait_for_living=False) as is_ours:  # removes what else it left
                if is_ours and stores[corpus].is_unlogged():  # else another process has taken it on
                    stores[corpus].leave_unlogged()
                    own.append(corpus)
        elif not facts["up_to_date"] and stores[corpus].is_own_to_log():  # other corpora may have taken hours since
            stores[corpus].leave_unlogged()
            own.append(corpus)
    if new := {corpus: results[corpus] for corpus in own}:
        with loading():
            from uml_core.tracking.ended_runs import log_embedding  # heavy, and a rerun may have no use for it
        for facts in new.values():
            add_workers(facts["stage_s"])
        with stage("log", "writing to MLflow"):
            log_embedding(experiment, new, again=any(facts["up_to_date"] for facts in new.values()))
        for corpus in new:
            stores[corpus].was_logged()


def embed_corpora(
    experiment: Experiment, corpora: Sequence[str], shown: StepProgress, results: dict[str, dict[str, Any]]
) -> None:
    """Bring corpora up to date in the store; the summary's facts of each are put into `results` once it is.

    Corpora that another run is embedding are left until the others are done, and then waited for.

    Raises:
        InputError: more rows of a corpus are unreadable than embed.max_rejected; what is embedded stays, of all.
    """
    left, sliced = list[CorpusWork](), dict[str, int]()
    for corpus in corpora:
        if experiment.encoder_of(corpus) is None:
            results[corpus] = adopt_ready(experiment, corpus, corpus_store(experiment, corpus))
            continue
        if (count := num_slices(experiment, corpus)) > 1:
            manifest = unchanged_manifest(experiment, corpus)
            if manifest is None:
                sliced[corpus] = count
            else:
                results[corpus] = facts_of(manifest, up_to_date=True)
            continue
        work = CorpusWork(experiment, corpus)
        manifest = work.finished_manifest()
        if manifest is None:
            left.append(work)
        else:
            results[corpus] = facts_of(manifest, up_to_date=True)
    if left or sliced:
        check_tracking(experiment.tracking.uri)  # not after hours of work
    with contextlib.ExitStack() as session:  # Ray starts where rows are missing, and stops after the last
        waits = False
        while left:
            _embed_free(left, session, shown, results, waits=waits)
            left, waits = [work for work in left if work.corpus not in results], True
        for corpus, count in sliced.items():
            session.enter_context(ray_session())
            results[corpus] = _embed_sliced(experiment, corpus, count, shown)


@timed("encode")
def _embed_sliced(experiment: Experiment, corpus: str, count: int, shown: StepProgress) -> dict[str, Any]:
    from pipelines.embed.slices import embed_sliced  # torch and Ray Data take seconds

    return embed_sliced(experiment, corpus, sliced_store(experiment, corpus), count, shown)


@timed("encode")
def _embed_free(
    works: Sequence[CorpusWork],
    session: contextlib.ExitStack,
    shown: StepProgress,
    results: dict[str, dict[str, Any]],
    *,
    waits: bool,
) -> None:
    """Embed the corpora that no other run is embedding, in one stream; if it `waits`, the first one in any case."""
    begun: list[CorpusWork] = []
    started_at, interrupts = time.time(), threading.current_thread() is threading.main_thread()
    with contextlib.ExitStack() as held:

        def begin() -> None:
            for work in works:
                if work.begin(held, waits=waits and work is works[0], interrupts=interrupts):
                    begun.append(work)

        is_here = _are_few(works)
        if is_here:
            begin()
        else:
            session.enter_context(ray_session(meanwhile=begin))
        for work in begun:
            if not work.names:
                results[work.corpus] = work.publish()
        left = {work.corpus: work for work in begun if work.names}
        if left:
            first = next(iter(left.values()))
            first.progress.started_at = started_at  # the others' turn comes with their first part
            shown.says(f"loading {first.encoder.config.name}")
            for corpus, work in _finished(left, shown, is_here=is_here):
                results[corpus] = work.publish()


def _are_few(works: Sequence[CorpusWork]) -> bool:
    """Whether so few rows are missing that this process encodes them: on a machine's CPUs, unless actors are set."""
    settings, room = works[0].experiment.embed, HERE_ROWS
    if settings.use_gpu is True or (settings.actors, settings.decoders) != ("auto", "auto") or is_elsewhere():
        return False
    for work in works:
        if work.listing.misses(more_than=room):
            return False
        room -= work.listing.num_missing
    return True


def _finished(left: dict[str, CorpusWork], shown: StepProgress, *, is_here: bool) -> Iterator[tuple[str, CorpusWork]]:
    """Stream the parts of corpora, one corpus after the other, to be encoded; each is yielded, and left, once done."""
    counted: CorpusWork | None = None
    for part in _stream(list(left.values()), is_here=is_here):
        work = left[str(part["corpus"])]
        work.progress.add(part)
        if len(work.progress.finished) == len(work.names):
            yield work.corpus, left.pop(work.corpus)
        current = next(iter(left.values()), None)
        if current is not None and current is not counted:
            shown.counts(f"encoding {current.corpus}", current.listing.num_missing)
            shown.adds(current.progress.rows)
        elif work is current:
            shown.adds(int(part["rows"]))
        counted = current


def _stream(works: Sequence[CorpusWork], *, is_here: bool) -> Iterator[Mapping[str, Any]]:
    """What `EncodePart` says of every part of some corpora."""
    from pipelines.embed import encode_part, stages  # numpy alone, but Ray Data where it streams
    from pipelines.embed.workers import HERE, Workers

    experiment = works[0].experiment
    parts = [f"{work.corpus}/{name}" for work in works for name in work.names]
    workers = HERE
    if not is_here:
        workers = Workers.from_settings(experiment.embed, num_parts=len(parts), cluster=experiment.cluster)
    return stages.stream_parts(
        parts,
        encode_part.EncodePart,
        workers,
        encoder={work.corpus: (work.encoder.config, work.encoder.modality) for work in works},
        read=stages.SpooledParts({work.corpus: work.spool for work in works}),
        arguments={
            "stores": {work.corpus: (work.store.uri, work.corpus, work.store.fingerprint) for work in works},
            "settings": experiment.embed,
            "precision": store_precision(experiment),
            "experiment": experiment.name,
        },
    )


class CorpusWork:
    """What is missing of one corpus in its store: listed once, spooled by the store's only writer, published."""

    def __init__(self, experiment: Experiment, corpus: str) -> None:
        self.experiment, self.corpus, self.names = experiment, corpus, list[str]()
        self._said = False
        self.encoder = build_encoder(experiment.encoder_of(corpus), experiment.corpora[corpus].modality)
        self.store = corpus_store(experiment, corpus)
        self.spool = self.store.spool()
        self._parts_before, self.listing = self.store.part_names(), self._list()

    def finished_manifest(self) -> dict[str, Any] | None:
        """The manifest where nothing is to be done."""
        manifest = None if self.listing.misses() else self.store.read_manifest()
        return manifest if manifest and self.store.holds_exactly(manifest, self.listing.keys) else None

    def begin(self, held: contextlib.ExitStack, *, waits: bool, interrupts: bool) -> bool:
        """Become the store's only writer, until `publish` or `held` ends it, and spool what is missing.

        False where another run is embedding the corpus, unless it `waits`.
        """
        self._writing = held.enter_context(contextlib.ExitStack())
        writing = self.store.writing(self._say_waiting, wait_for_living=waits, interrupts=interrupts)
        if not self._writing.enter_context(writing):
            return False
        if self.store.part_names() != self._parts_before:  # another run has written: that is not missing now
            self.listing = self._list()
        self._theirs = self.finished_manifest()
        self.names = self.spool.write(self.listing.missing)
        self.progress = EmbedProgress(self.corpus, len(self.listing.keys), self.experiment.embed.max_rejected)
        self.progress.started_at = float("inf")
        fault = self.listing.first_fault
        if fault is not None:  # before rows are read for nothing
            self.progress.check(self.listing.num_faults, f"{fault.id}: {fault.fault}")
        return True

    def publish(self) -> dict[str, Any]:
        """Leave each listed row in one part of the store, and no other; returns the summary's facts.

        What another run has finished meanwhile stays as it is, with that run's measurements.
        """
        if self._theirs is not None:
            self._writing.close()
            return facts_of(self._theirs, up_to_date=True)
        listing, store = self.listing, self.store
        settled = store.settle(store.footers(), listing.keys)
        lost = len(listing.keys) - len(settled.keys)
        if lost:
            raise RuntimeError(f"{lost} rows of corpus {self.corpus} are in no part of {store.directory}; run it again")
        check_rejected(self.progress, settled.parts)
        changed = listing.came_again(settled.stale_ids)
        facts = {
            "encoder": self.encoder.identity(),
            "dim": self.encoder.dim,
            "dtype": self.experiment.embed.dtype,
            "tokens": self.encoder.yields_tokens,
            "vocabulary": self.encoder.vocabulary,
            "precision": store_precision(self.experiment),
            **self.progress.facts(),
            "new": listing.num_missing - changed,
            "changed": changed,
            "removed": len(settled.stale_ids) - changed,
        }
        store.leave_unlogged()
        manifest = store.publish(settled.parts, facts)
        self._writing.close()
        return facts_of(manifest, up_to_date=False)

    def _say_waiting(self) -> None:
        """Say it once, when this begins to wait (also to see whether another host's run lives)."""
        if not self._said:
            place = self.store.directory
            said = f"corpus {self.corpus} is being embedded by another run into {place}; waiting for it"
            print(said, file=sys.stderr)
        self._said = True

    def _list(self) -> Listing:
        given = self.experiment.embed.part_rows
        rows = rows_of(self.experiment, self.corpus)
        if given != "auto":
            return Listing(rows, self.store.stored_keys(), given)
        most = self.encoder.part_rows
        return Listing(rows, self.store.stored_keys(), most, first_rows=max(1, most // FIRST_SHARE))
