"""What the steps after `embed` read: the store's folders of an experiment, and its tables. Light to import.

Objective supervised reads embeddings (`CorpusTable`), self_supervised sequences of tokens (`SequenceTable`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from uml_core.config import CorpusConfig, Experiment, hash_of
from uml_core.corpora.ready import ready_identity
from uml_core.corpora.ready_sequences import sequence_identity
from uml_core.corpora.sequence_data import SequenceData, build_sequence_data
from uml_core.corpora.subset_files import read_subset, subset_text
from uml_core.corpora.subsets import Rows
from uml_core.corpora.training_data import TrainingData, build_training_data
from uml_core.sequence_store import SequenceTable, load_sequences
from uml_core.store import CorpusStore, CorpusTable

Tables = Mapping[str, CorpusTable] | Mapping[str, SequenceTable]


@dataclass(frozen=True)
class StoredData:
    """What a training run reads, and the fingerprints of the corpora it comes from."""

    fingerprints: Mapping[str, str]
    data: TrainingData | SequenceData


def read_training_data(experiment: Experiment) -> StoredData:
    """Read an experiment's corpora from the store and select its rows. Raises InputError for the user's mistakes."""
    fingerprints = corpus_fingerprints(experiment)
    return StoredData(fingerprints, build_data(experiment, load_tables(experiment, fingerprints)))


def build_data(experiment: Experiment, tables: Any) -> TrainingData | SequenceData:
    """Select the rows that the experiment's objective trains on. Raises InputError for the user's mistakes."""
    given = subset_places(experiment)
    if experiment.objective == "self_supervised":
        return build_sequence_data(experiment, tables, given)
    data = build_training_data(experiment, tables, given)
    return data if experiment.model.backbone == "frozen" else with_pictures(experiment, data)


def subset_places(experiment: Experiment) -> dict[str, Rows] | None:
    """Return the target's table rows that data.subset names, by split; None where it is not set."""
    if experiment.data.subset is None:
        return None
    store = corpus_store(experiment, experiment.target)
    return _subset_places(experiment.data.subset, store.uri, store.corpus, store.fingerprint)


@functools.lru_cache(maxsize=8)
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
    stores = {corpus: CorpusStore(experiment.store, corpus, fingerprints[corpus]) for corpus in experiment.corpora}
    if experiment.objective == "self_supervised":
        return {corpus: load_sequences(store) for corpus, store in stores.items()}
    return {corpus: store.load() for corpus, store in stores.items()}


def store_tables(experiment: Experiment) -> Tables:
    """Read every corpus of an experiment from the store."""
    return load_tables(experiment, corpus_fingerprints(experiment))
