"""What the steps after `embed` read: the store's folders of an experiment, and its tables. Light to import.

Objective supervised reads embeddings (`CorpusTable`), self_supervised sequences of tokens (`SequenceTable`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from uml_core.config import CorpusConfig, Experiment, hash_of
from uml_core.corpora.ready import ready_identity
from uml_core.corpora.ready_sequences import sequence_identity
from uml_core.corpora.sequence_data import SequenceData, build_sequence_data
from uml_core.corpora.training_data import TrainingData, build_training_data
from uml_core.errors import listing
from uml_core.mapped import cache_dir, embedding_bytes, is_mapped, mapped_table, streamed_corpora
from uml_core.sequence_store import SequenceTable, load_sequences
from uml_core.store import CorpusStore, CorpusTable

logger = logging.getLogger(__name__)

Tables = Mapping[str, CorpusTable] | Mapping[str, SequenceTable]


@dataclass(frozen=True)
class StoredData:
    """What a training run reads, and the fingerprints of the corpora it comes from."""

    fingerprints: Mapping[str, str]
    data: TrainingData | SequenceData
    feeds: Mapping[str, str]  # of every corpus: memory or stream

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
    return StoredData(fingerprints, build_data(experiment, tables), feeds)


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


def build_data(experiment: Experiment, tables: Any) -> TrainingData | SequenceData:
    """Select the rows that the experiment's objective trains on. Raises InputError for the user's mistakes."""
    if experiment.objective == "self_supervised":
        return build_sequence_data(experiment, tables)
    data = build_training_data(experiment, tables)
    return data if experiment.model.backbone == "frozen" else with_pictures(experiment, data)


def with_pictures(experiment: Experiment, data: TrainingData) -> TrainingData:
    """Add the target's raw pictures, from where its corpus lies. Raises InputError where they have changed."""
    from uml_core.corpora.readers import rows_of
    from uml_core.fine_tuning import target_encoder
    from uml_core.pictures import picture_data

    ids = corpus_store(experiment, experiment.target).load_ids()
    rows = {row.id: row for row in rows_of(experiment, experiment.target)}
    return picture_data(experiment, data, ids, rows, target_encoder(experiment))


def corpus_store(experiment: Experiment, corpus: str) -> CorpusStore:
    """Return the store folder of a corpus under the experiment's encoder and settings."""
    return CorpusStore(experiment.store, corpus, corpus_fingerprint(experiment, corpus))


def corpus_fingerprint(experiment: Experiment, corpus: str) -> str:
    """Return the fingerprint of a corpus's embeddings: encoder, weights, preprocessing, dtype and precision."""
    config = experiment.encoder_of(corpus)
    if config is None:
        return hash_of(adopted_identity(corpus, experiment.corpora[corpus]))
    from uml_core.encoders import build_encoder, fingerprint  # torch takes seconds; ready embeddings need none of it

    encoder = build_encoder(config, experiment.corpora[corpus].modality)
    return fingerprint(encoder, dtype=experiment.embed.dtype, precision=embedding_precision(experiment))


def adopted_identity(corpus: str, config: CorpusConfig) -> dict[str, object]:
    """Return what names the store folder of ready embeddings or ready sequences."""
    return (ready_identity if config.format == "embeddings" else sequence_identity)(corpus, config)


def corpus_fingerprints(experiment: Experiment) -> dict[str, str]:
    """Return the fingerprint of every corpus."""
    return {corpus: corpus_fingerprint(experiment, corpus) for corpus in experiment.corpora}


def embedding_precision(experiment: Experiment) -> str:
    """Return the arithmetic the encoder runs in here."""
    import torch

    from uml_core.encoders import resolve_precision

    return resolve_precision(experiment.embed.precision, "cuda" if torch.cuda.is_available() else "cpu")


def load_tables(experiment: Experiment, fingerprints: Mapping[str, str]) -> Tables:
    """Read every corpus of an experiment from the store, by fingerprints found before."""
    stores = corpus_stores(experiment, fingerprints)
    if experiment.objective == "self_supervised":
        return {corpus: load_sequences(store) for corpus, store in stores.items()}
    return {corpus: store.load() for corpus, store in stores.items()}


def corpus_stores(experiment: Experiment, fingerprints: Mapping[str, str]) -> dict[str, CorpusStore]:
    """Return the store folder of every corpus, by fingerprints found before."""
    return {corpus: CorpusStore(experiment.store, corpus, fingerprints[corpus]) for corpus in experiment.corpora}


def store_tables(experiment: Experiment) -> Tables:
    """Read every corpus of an experiment from the store."""
    return load_tables(experiment, corpus_fingerprints(experiment))
