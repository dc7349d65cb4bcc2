"""The rows of a run as a file (subset.json), and the rows of such a file in the store (`data.subset`).

Where all of a corpus's train rows are taken they are counted, in the file and in its table, and nowhere listed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

from pipelines.stores import corpus_store, corpus_stores
from uml_core.config import Experiment
from uml_core.data.counted_rows import is_counted
from uml_core.data.sequence_data import SequenceData
from uml_core.data.subsets import Rows, read_subset, subset_text
from uml_core.data.training_data import TrainingData
from uml_core.store.corpus_store import CorpusStore


def subset_rows(experiment: Experiment, *, is_counted: bool = False) -> dict[str, Rows] | None:
    """The target's table rows that data.subset names, by split; None where it is not set.

    They are rows of a table whose rows of split train are counted, or of all rows.
    """
    if experiment.data.subset is None:
        return None
    store = corpus_store(experiment, experiment.target)
    without = "train" if is_counted else None
    return _subset_rows(experiment.data.subset, store.uri, store.corpus, store.fingerprint, without)


@lru_cache(maxsize=8)
def _subset_rows(path: str, store_uri: str, corpus: str, fingerprint: str, without: str | None) -> dict[str, Rows]:
    """Read file and ids once in a process: the trials of a sweep share them."""
    subset, store = read_once(path), CorpusStore(store_uri, corpus, fingerprint, without=without)
    subset.check_counts(store.finished_manifest()["rows_per_class"].get("train", {}))
    return subset.table_rows(store.load_ids())


read_once = lru_cache(maxsize=8)(read_subset)


def counted_corpora(
    experiment: Experiment, fingerprints: Mapping[str, str], streamed: Collection[str]
) -> frozenset[str]:
    """The streamed corpora whose train rows are counted, and not listed."""
    stores, path = corpus_stores(experiment, fingerprints), experiment.data.subset
    subset = None if path is None else read_once(path)
    rows = {corpus: stores[corpus].embeddings_manifest()["rows_per_class"] for corpus in streamed}
    return frozenset(corpus for corpus, each in rows.items() if is_counted(experiment, corpus, each, subset))


def subset_of(experiment: Experiment, data: TrainingData | SequenceData, ids: Sequence[str]) -> str:
    """The rows a run trains, validates and is tested on, as a file for data.subset; `ids` are those of the table."""
    splits = {"train": data.labelled, "val": data.val, **({} if data.test is None else {"test": data.test})}
    facts: dict[str, Any] = {"target": experiment.target, "shots": experiment.data.shots}
    facts["split_seed"] = experiment.data.split_seed
    if (counts := data.labelled.counts) is not None:
        names = [data.classes[code] for code in splits.pop("train").labels]
        facts["train"] = dict(zip(names, counts.tolist(), strict=True))
    named = {name: ([ids[row] for row in rows.rows], rows.labels.tolist()) for name, rows in splits.items()}
    return subset_text(data.classes, named, **facts)
