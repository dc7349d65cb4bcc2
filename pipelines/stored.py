"""What the steps after `embed` read: the store's folders of an experiment, and its tables. Light to import.

Objective supervised reads embeddings (`CorpusTable`), self_supervised sequences of tokens (`SequenceTable`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from uml_core.config import CorpusConfig, Experiment, hash_of
from uml_core.corpora.ready import ready_identity
from uml_core.corpora.ready_sequences import sequence_identity
from uml_core.corpora.sequence_data import SequenceData, build_sequence_data
from uml_core.corpora.training_data import TrainingData, build_training_data
from uml_core.sequence_store import SequenceTable, load_sequences
from uml_core.store import CorpusStore, CorpusTable

if TYPE_CHECKING:
    from uml_core.corpora.rows import Row
    from uml_core.pictures import Pixels

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


@dataclass
class PictureSource:
    """The target's rows as they are listed, and those of its pictures that are decoded: shared by a process's runs."""

    corpus: str  # hash of what names the corpus and its encoder
    ids: tuple[str, ...]  # of the store's table
    rows: Mapping[str, Row]
    kept: dict[int, Pixels] = field(default_factory=dict)


class PictureSources:
    """Lists the target's pictures once for many runs, and remembers what they have decoded."""

    def __init__(self) -> None:
        self._last: PictureSource | None = None

    def of(self, experiment: Experiment) -> PictureSource:
        """Return the source of an experiment's target; of the last target alone it is remembered."""
        target, tree = experiment.target, experiment.model_dump(mode="json")
        settings = (tree["corpora"][target], tree["encoders"], tree["embed"])
        corpus = hash_of([experiment.store, target, *settings])
        if self._last is None or self._last.corpus != corpus:
            from uml_core.corpora.readers import rows_of

            ids, rows = corpus_store(experiment, target).load_ids(), rows_of(experiment, target)
            self._last = PictureSource(corpus, ids, {row.id: row for row in rows})
        elif sum(picture.nbytes for picture in self._last.kept.values()) > experiment.pictures.memory_gib * 2**30:
            self._last.kept.clear()  # runs of other seeds take other pictures of a large corpus
        return self._last


def build_data(
    experiment: Experiment, tables: Any, sources: PictureSources | None = None
) -> TrainingData | SequenceData:
    """Select the rows that the experiment's objective trains on. Raises InputError for the user's mistakes."""
    if experiment.objective == "self_supervised":
        return build_sequence_data(experiment, tables)
    data = build_training_data(experiment, tables)
    if experiment.model.backbone == "frozen":
        return data
    return with_pictures(experiment, data, (sources or PictureSources()).of(experiment))


def with_pictures(experiment: Experiment, data: TrainingData, source: PictureSource) -> TrainingData:
    """Add the target's raw pictures, from where its corpus lies. Raises InputError where they have changed."""
    from uml_core.fine_tuning import target_encoder
    from uml_core.pictures import picture_data

    pictures = picture_data(experiment, data, source.ids, source.rows, target_encoder(experiment))
    return replace(pictures, kept=source.kept)


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
