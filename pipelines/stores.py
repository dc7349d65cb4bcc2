"""What the steps after `embed` read: the store's folders of an experiment, and its tables. Light to import.

Objective supervised reads embeddings (`CorpusTable`), self_supervised sequences of tokens (`SequenceTable`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from pipelines.progress import stage
from pipelines.timings import timed
from uml_core.config import Experiment, hash_of
from uml_core.corpora.ready.adopt import ready_identity
from uml_core.store.corpus_store import CorpusStore
from uml_core.store.corpus_table import CorpusTable
from uml_core.store.counted_table import load_labels
from uml_core.store.sequence_table import SequenceTable, load_sequence_labels, load_sequences

Tables = Mapping[str, CorpusTable] | Mapping[str, SequenceTable]


def corpus_store(experiment: Experiment, corpus: str) -> CorpusStore:
    return CorpusStore(experiment.store, corpus, corpus_fingerprint(experiment, corpus))


def corpus_fingerprint(experiment: Experiment, corpus: str) -> str:
    """The fingerprint of a corpus's embeddings: encoder, weights, preprocessing, dtype and precision."""
    config = experiment.encoder_of(corpus)
    if config is None:
        return hash_of(ready_identity(corpus, experiment.corpora[corpus]))
    from uml_core.encoders import build_encoder, fingerprint, store_precision

    encoder = build_encoder(config, experiment.corpora[corpus].modality)
    return fingerprint(encoder, dtype=experiment.embed.dtype, precision=store_precision(experiment))


@timed("read")
def corpus_fingerprints(experiment: Experiment) -> dict[str, str]:
    return {corpus: corpus_fingerprint(experiment, corpus) for corpus in experiment.corpora}


def corpus_stores(experiment: Experiment, fingerprints: Mapping[str, str]) -> dict[str, CorpusStore]:
    return {corpus: CorpusStore(experiment.store, corpus, fingerprints[corpus]) for corpus in experiment.corpora}


@stage("read", "reading embeddings")
def load_tables(experiment: Experiment, fingerprints: Mapping[str, str]) -> Tables:
    """Read every corpus of an experiment from the store, by fingerprints found before."""
    stores = corpus_stores(experiment, fingerprints)
    if experiment.objective == "self_supervised":
        return {corpus: load_sequences(store) for corpus, store in stores.items()}
    return {corpus: store.load() for corpus, store in stores.items()}


def load_label_tables(
    experiment: Experiment, fingerprints: Mapping[str, str], counted: Collection[str] = frozenset()
) -> Tables:
    """Read labels and splits of every corpus, as `load_tables` orders them; embeddings are not read, and are NaN.

    Of `counted` corpora the rows of split train are counted.
    """
    stores = corpus_stores(experiment, fingerprints)
    if experiment.objective == "self_supervised":
        return {corpus: load_sequence_labels(store) for corpus, store in stores.items()}
    return {corpus: load_labels(store, is_counted=corpus in counted) for corpus, store in stores.items()}


def store_tables(experiment: Experiment) -> Tables:
    return load_tables(experiment, corpus_fingerprints(experiment))
