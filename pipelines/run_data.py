"""What a run trains on: tables read from the store, and the rows that its experiment selects of them.

The driver of `train` reads labels and splits alone (`check_data`): enough for every mistake that a user can make with
them. Who trains reads the embeddings (`load_data`).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.progress import stage
from pipelines.raw_sources import RawSources, with_raw_rows
from pipelines.stores import (
    Tables,
    corpus_fingerprints,
    corpus_stores,
    load_label_tables,
    load_tables,
)
from pipelines.subset_files import counted_corpora, subset_rows
from uml_core.config import Experiment, hash_of
from uml_core.config.used_by import deciding
from uml_core.data.row_statistics import RowStatistics
from uml_core.data.sequence_data import SequenceData, build_sequence_data
from uml_core.data.subsets import Rows
from uml_core.data.training_data import TrainingData, build_training_data
from uml_core.errors import listing
from uml_core.store.corpus_store import CorpusStore
from uml_core.store.corpus_table import CorpusTable, order_by_id, unread
from uml_core.store.counted_table import load_labels, rest_of, with_train_counted
from uml_core.store.mapped_table import cache_dir, embedding_bytes, mapped_table, streamed_corpora
from uml_core.store.sums_folder import TOTAL, SumsFolder

if TYPE_CHECKING:
    from uml_core.gradients.batch import NonFiniteError

MAX_SHARED = 8  # as many as a pack has trials; of heads without steps, arms of one seed differ in fewer
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckedData:
    """What is known of a run's data without its embeddings: which rows it trains, validates and is tested on."""

    fingerprints: Mapping[str, str]
    data: TrainingData | SequenceData  # its embeddings are NaN
    feeds: Mapping[str, str]  # of every corpus: memory or stream
    tables: Tables = field(default_factory=dict)
    seeds: tuple[int, int] = (0, 0)  # seed and data.split_seed, by which the rows are drawn
    sources: RawSources = field(default_factory=RawSources)

    def for_experiment(self, experiment: Experiment) -> CheckedData:
        """What the same experiment reads under another seed: other rows of the same tables."""
        seeds = experiment.seed, experiment.data.split_seed
        if seeds == self.seeds:
            return self
        return replace(self, data=build_data(experiment, self.tables, self.sources), seeds=seeds)

    def describe_feed(self, experiment: Experiment) -> str:
        streamed = [corpus for corpus, feed in self.feeds.items() if feed == "stream"]
        how = "added up over the store, or read" if experiment.solved_from else "read ahead"
        return (
            f"embeddings of {listing(streamed)} are {how} from a file in {cache_dir(experiment)} "
            f"(feed.keep is {experiment.feed.keep}, feed.memory_gib {experiment.feed.memory_gib:g})"
        )


@stage("read", "reading labels")
def check_data(experiment: Experiment) -> CheckedData:
    """Select an experiment's rows, reading no embedding. Raises InputError for the user's mistakes."""
    fingerprints, sources = corpus_fingerprints(experiment), RawSources()
    streamed = _streamed(experiment, corpus_stores(experiment, fingerprints))
    tables = load_label_tables(experiment, fingerprints, counted_corpora(experiment, fingerprints, streamed))
    feeds = {corpus: "stream" if corpus in streamed else "memory" for corpus in tables}
    seeds = experiment.seed, experiment.data.split_seed
    return CheckedData(fingerprints, build_data(experiment, tables, sources), feeds, tables, seeds, sources)


@stage("read", "reading embeddings")
def load_data(
    experiment: Experiment, fingerprints: Mapping[str, str] | None = None, sums: Mapping[str, str] | None = None
) -> TrainingData | SequenceData:
    """Read an experiment's corpora from the store and select its rows.

    Args:
        experiment: what is trained.
        fingerprints: of the corpora, where they are known.
        sums: the keys of what `pipelines.row_sums` has added up.

    Raises:
        InputError: for the user's mistakes.
    """
    found, sums = fingerprints or corpus_fingerprints(experiment), sums or {}
    if not sums:
        return build_data(experiment, training_tables(experiment, found))
    data = build_data(experiment, training_tables(experiment, found, sums))
    assert isinstance(data, TrainingData), "other data are refused with the experiment"
    folders = {corpus: SumsFolder((experiment.store, corpus, found[corpus]), key) for corpus, key in sums.items()}
    totals = {corpus: RowStatistics.from_bytes(folder.read(TOTAL)) for corpus, folder in folders.items()}
    added_up = {corpus: data.train[corpus] for corpus in sums}
    train = {corpus: replace(rows, embeddings=unread(*rows.embeddings.shape)) for corpus, rows in added_up.items()}
    return replace(data, statistics=totals, train={**data.train, **train})


def _held_out(experiment: Experiment, fingerprints: Mapping[str, str]) -> Rows:
    """The target's rows that are read where its train rows are added up: those that it is validated and tested on."""
    data = build_data(experiment, load_label_tables(experiment, fingerprints))
    assert isinstance(data, TrainingData), "other data are refused with the experiment"
    read = [data.val, *data.shifted.values(), *([] if data.test is None else [data.test])]
    return np.unique(np.concatenate([rows.rows for rows in read if rows.corpus in ("", experiment.target)]))


def training_tables(
    experiment: Experiment,
    fingerprints: Mapping[str, str],
    sums: Collection[str] = frozenset(),
) -> Tables:
    """Read the corpora of a training run: those that do not fit in feed.memory_gib as files on this machine's disk.

    Args:
        experiment: what is trained.
        fingerprints: of its corpora.
        sums: the corpora that were added up. Of an auxiliary one that does not fit, and of one that a solved head does
            not ask for, labels and splits alone are read; of such a target the rows to validate and to test on.
    """
    if experiment.objective == "self_supervised":
        return load_tables(experiment, fingerprints)
    stores, cache = corpus_stores(experiment, fingerprints), cache_dir(experiment)
    streamed = _streamed(experiment, stores)
    is_solved, asked = bool(experiment.solved_from), set(experiment.solved_from) - set(sums)
    counted = counted_corpora(experiment, fingerprints, streamed) if sums else frozenset()

    def table(corpus: str, store: CorpusStore) -> CorpusTable:
        if corpus not in streamed:
            return store.load()
        if is_solved and corpus in experiment.auxiliaries and corpus not in asked:
            return load_labels(store, is_counted=corpus in counted)
        on_wait = partial(_say_waiting, corpus)
        if corpus in counted:
            return with_train_counted(store, mapped_table(rest_of(store), cache, on_wait))
        is_added = corpus == experiment.target and corpus in sums
        return mapped_table(store, cache, on_wait, _held_out(experiment, fingerprints) if is_added else None)

    return {corpus: table(corpus, store) for corpus, store in stores.items()}


def _streamed(experiment: Experiment, stores: Mapping[str, CorpusStore]) -> frozenset[str]:
    """The corpora whose embeddings do not stay in memory: of sequences none."""
    if experiment.objective == "self_supervised":
        return frozenset()
    sizes = {corpus: embedding_bytes(store.embeddings_manifest()) for corpus, store in stores.items()}
    return streamed_corpora(experiment.feed, sizes)


def _say_waiting(corpus: str) -> None:
    logger.warning("%s: another process writes its file; waiting for it", corpus)


def build_data(experiment: Experiment, tables: Any, sources: RawSources | None = None) -> TrainingData | SequenceData:
    """Select the rows that the experiment's objective trains on. Raises InputError for the user's mistakes."""
    given = subset_rows(experiment, is_counted=tables[experiment.target].counts is not None)
    if experiment.objective == "self_supervised":
        return build_sequence_data(experiment, tables, given)
    data = build_training_data(experiment, tables, given)
    return data if experiment.model.backbone == "frozen" else with_raw_rows(experiment, data, sources or RawSources())


class SharedData:
    """Data of some runs, selected once for those that select the same rows; `most` of them are kept."""

    def __init__(self, tables: Any, *, most: int = MAX_SHARED) -> None:
        self._tables, self._most, self._kept = tables, most, dict[str, Any]()

    def of(self, experiment: Experiment) -> Any:
        """The run's `TrainingData` or `SequenceData`. Raises InputError for the user's mistakes."""
        key = hash_of(deciding(experiment, "rows"))
        if key not in self._kept:
            if len(self._kept) == self._most:
                self._kept.clear()
            self._kept[key] = build_data(experiment, self._tables)
        return self._kept[key]


def divergence_message(error: NonFiniteError, experiment: Experiment, fingerprints: Mapping[str, str]) -> str:
    """Say why a run diverged, with the ids of its batch where rows are a corpus's own."""
    ids = {}
    for corpus, rows in error.rows.items():
        averaged = experiment.data.auxiliary_shots.get(corpus) == "average"
        if averaged or experiment.corpora[corpus].control == "noise":
            continue
        store = CorpusStore(experiment.store, corpus, fingerprints[corpus])
        stored = store.read_columns(store.finished_manifest(), ["id"])
        ids[corpus] = stored["id"].take(order_by_id(stored)[list(rows)]).to_pylist()
    return error.naming(ids)
