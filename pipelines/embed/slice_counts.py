"""What `embed` knows of a large corpus before Ray runs: how many slices it has, and whether any of it has changed."""

from __future__ import annotations

from typing import Any

from pipelines.embed.facts import EmbedProgress
from pipelines.stores import corpus_store
from uml_core.config import Experiment
from uml_core.corpora.readers.base import CorpusSource
from uml_core.corpora.readers.slices import FEWEST, files_digest, slices_for
from uml_core.store.sliced_store import SlicedStore


def num_slices(experiment: Experiment, corpus: str) -> int:
    """Into how many slices a corpus is split: as its store was begun, else as embed.slices has it."""
    source, given = CorpusSource(corpus, experiment.corpora[corpus]), experiment.embed.slices
    if source.corpus.format not in FEWEST:
        return 1
    count = sliced_store(experiment, corpus).num_slices()
    return count or (slices_for(source) if given == "auto" else given)


def unchanged_manifest(experiment: Experiment, corpus: str) -> dict[str, Any] | None:
    """The manifest of a corpus in slices where no shard and no table has changed: none is listed to tell."""
    store, source = sliced_store(experiment, corpus), CorpusSource(corpus, experiment.corpora[corpus])
    manifest = store.unchanged_manifest(files_digest(source))
    if manifest is not None:
        rejected = manifest["rejected_rows"]
        progress = EmbedProgress(corpus, manifest["rows"] + rejected, experiment.embed.max_rejected)
        progress.check(rejected, f"in {store.directory}/rejected.parquet")
    return manifest


def sliced_store(experiment: Experiment, corpus: str) -> SlicedStore:
    store = corpus_store(experiment, corpus)
    return SlicedStore(store.uri, corpus, store.fingerprint)
