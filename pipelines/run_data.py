"""What a run trains on: tables read from the store, and the rows that its experiment selects of them.

Objective supervised reads embeddings (`CorpusTable`), self_supervised sequences of tokens (`SequenceTable`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from uml_core.config import Experiment, hash_of
from uml_core.config.used_by import deciding
from uml_core.data.sequence_data import SequenceData, build_sequence_data
from uml_core.data.subset_files import read_subset, subset_text
from uml_core.data.subsets import Rows
from uml_core.data.training_data import TrainingData, build_training_data
from uml_core.errors import listing
from uml_core.store.corpus_store import CorpusStore
from uml_core.store.corpus_table import CorpusTable, order_by_id
from uml_core.store.mapped_table import cache_dir, embedding_bytes, is_mapped, mapped_table, streamed_corpora
from uml_core.store.sequence_table import SequenceTable

if TYPE_CHECKING:
    from uml_core.corpora.rows import Row
    from uml_core.encoders.torch_encoder import Arrays
    from uml_core.gradients.batch import NonFiniteError
from pipelines.stores import Tables, corpus_fingerprints, corpus_store, corpus_stores, load_tables, logger


@dataclass(frozen=True)
class StoredData:
    """What a training run reads, the tables it is drawn from, and the fingerprints of the corpora it comes from."""

    fingerprints: Mapping[str, str]
    data: TrainingData | SequenceData
    feeds: Mapping[str, str]  # of every corpus: memory or stream
    tables: Tables = field(default_factory=dict)
    seeds: tuple[int, int] = (0, 0)  # seed and data.split_seed, by which the rows are drawn
    sources: RawSources = field(default_factory=lambda: RawSources())

    def of(self, experiment: Experiment) -> StoredData:
        """Return what the same experiment reads under another seed: other rows of the same tables."""
        seeds = experiment.seed, experiment.data.split_seed
        if seeds == self.seeds:
            return self
        return replace(self, data=build_data(experiment, self.tables, self.sources), seeds=seeds)

    def describe_feed(self, experiment: Experiment) -> str:
        """Return one line on what is streamed, and why."""
        streamed = [corpus for corpus, feed in self.feeds.items() if feed == "stream"]
        return (
            f"embeddings of {listing(streamed)} are read ahead from a file in {cache_dir(experiment)} "
            f"(feed.keep is {experiment.feed.keep}, feed.memory_gib {experiment.feed.memory_gib:g})"
        )


def read_training_data(experiment: Experiment) -> StoredData:
    """Read an experiment's corpora from the store and select its rows. Raises InputError for the user's mistakes."""
    fingerprints = corpus_fingerprints(experiment)
    tables = training_tables(experiment, fingerprints)
    feeds = {corpus: "stream" if is_streamed(table) else "memory" for corpus, table in tables.items()}
    sources = RawSources()
    seeds = experiment.seed, experiment.data.split_seed
    return StoredData(fingerprints, build_data(experiment, tables, sources), feeds, tables, seeds, sources)


def training_tables(experiment: Experiment, fingerprints: Mapping[str, str]) -> Tables:
    """Read the corpora of a training run: those that do not fit in feed.memory_gib as files on this machine's disk."""
    if experiment.objective == "self_supervised":
        return load_tables(experiment, fingerprints)
    stores = corpus_stores(experiment, fingerprints)
    sizes = {corpus: embedding_bytes(store.embeddings_manifest()) for corpus, store in stores.items()}
    streamed, cache = streamed_corpora(experiment.feed, sizes), cache_dir(experiment)
    return {
        corpus: mapped_table(store, cache, partial(_say_waiting, corpus)) if corpus in streamed else store.load()
        for corpus, store in stores.items()
    }


def is_streamed(table: CorpusTable | SequenceTable) -> bool:
    """Return whether a table's embeddings lie in a file."""
    return isinstance(table, CorpusTable) and is_mapped(table.embeddings)


def _say_waiting(corpus: str) -> None:
    logger.warning("%s: another process writes its file; waiting for it", corpus)


@dataclass
class RawSource:
    """A corpus's rows as they are listed, and those of its pictures that are decoded: shared by a process's runs."""

    settings: str  # hash of what names the corpus and its encoder
    ids: tuple[str, ...]  # of the store's table
    rows: Mapping[str, Row]
    kept: dict[int, Arrays] = field(default_factory=dict)


class RawSources:
    """Lists raw corpora once for many runs, and remembers the pictures they have decoded."""

    def __init__(self) -> None:
        self._known: dict[str, RawSource] = {}

    def of(self, experiment: Experiment, corpus: str) -> RawSource:
        """Return the source of a corpus; under one name the last is remembered."""
        others = tuple(f"corpora.{name}." for name in experiment.corpora if name != corpus)
        stored = deciding(experiment, "store").items()
        settings = hash_of([corpus, {key: value for key, value in stored if not key.startswith(others)}])
        known = self._known.get(corpus)
        if known is None or known.settings != settings:
            from uml_core.corpora.readers import rows_of

            ids, rows = corpus_store(experiment, corpus).load_ids(), rows_of(experiment, corpus)
            known = self._known[corpus] = RawSource(settings, ids, {row.id: row for row in rows})
        elif sum(picture.nbytes for picture in known.kept.values()) > experiment.pictures.memory_gib * 2**30:
            known.kept.clear()  # runs of other seeds take other pictures of a large corpus
        return known


def build_data(experiment: Experiment, tables: Any, sources: RawSources | None = None) -> TrainingData | SequenceData:
    """Select the rows that the experiment's objective trains on. Raises InputError for the user's mistakes."""
    given = subset_places(experiment)
    if experiment.objective == "self_supervised":
        return build_sequence_data(experiment, tables, given)
    data = build_training_data(experiment, tables, given)
    return data if experiment.model.backbone == "frozen" else with_raw_rows(experiment, data, sources or RawSources())


def subset_places(experiment: Experiment) -> dict[str, Rows] | None:
    """Return the target's table rows that data.subset names, by split; None where it is not set."""
    if experiment.data.subset is None:
        return None
    store = corpus_store(experiment, experiment.target)
    return _subset_places(experiment.data.subset, store.uri, store.corpus, store.fingerprint)


@lru_cache(maxsize=8)
def _subset_places(path: str, store_uri: str, corpus: str, fingerprint: str) -> dict[str, Rows]:
    """Read file and ids once in a process: the trials of a sweep share them."""
    return read_subset(path).places(CorpusStore(store_uri, corpus, fingerprint).load_ids())


def subset_of(experiment: Experiment, data: TrainingData | SequenceData) -> str:
    """Return the rows a run trains, validates and is tested on as a file that data.subset takes."""
    ids = corpus_store(experiment, experiment.target).load_ids()
    splits = {"train": data.labelled, "val": data.val, **({} if data.test is None else {"test": data.test})}
    named = {name: ([ids[row] for row in rows.rows], rows.labels.tolist()) for name, rows in splits.items()}
    settings = experiment.data
    return subset_text(
        data.classes, named, target=experiment.target, shots=settings.shots, split_seed=settings.split_seed
    )


def with_raw_rows(experiment: Experiment, data: TrainingData, sources: RawSources) -> TrainingData:
    """Add the target's pictures or clips, and the sentences of corpora whose encoder is trained, from where they lie.

    Raises:
        InputError: a corpus is no longer what was embedded.
    """
    from uml_core.feed.pictures import picture_data, raw_rows
    from uml_core.training.fine_tuning import target_encoder

    pictures = sources.of(experiment, experiment.target)
    texts = {name: sources.of(experiment, name) for name in experiment.model.trained_auxiliaries}
    return replace(
        picture_data(experiment, data, pictures.ids, pictures.rows, target_encoder(experiment)),
        sentences={name: raw_rows(name, text.ids, text.rows) for name, text in texts.items()},
        kept=pictures.kept,
    )


def divergence_message(error: NonFiniteError, experiment: Experiment, fingerprints: Mapping[str, str]) -> str:
    """Return what to say of a run that diverged: with the ids of its batch, of corpora that are there themselves."""
    ids = {}
    for corpus, rows in error.rows.items():
        averaged = experiment.data.auxiliary_shots.get(corpus) == "average"
        if averaged or experiment.corpora[corpus].control == "noise":
            continue
        store = CorpusStore(experiment.store, corpus, fingerprints[corpus])
        stored = store.read_columns(store.finished_manifest(), ["id"])
        ids[corpus] = stored["id"].take(order_by_id(stored)[list(rows)]).to_pylist()
    return error.naming(ids)
