"""Embeddings that the user computed, taken over into the store."""

from __future__ import annotations

import sys
import time
from typing import Any

from pipelines.embed.facts import EmbedProgress, check_rejected, facts_of
from pipelines.progress import stage
from uml_core.config import Experiment
from uml_core.corpora.ready.adopt import ready_identity, stream_ready
from uml_core.store.corpus_store import CorpusStore
from uml_core.store.parts import Values


@stage("read", "reading ready embeddings")
def adopt_ready(experiment: Experiment, corpus: str, store: CorpusStore) -> dict[str, Any]:
    """Take over embeddings that the user computed, chunk by chunk; the fingerprint names the files' content."""
    manifest = store.read_manifest()
    if manifest is not None:
        return facts_of(manifest, up_to_date=True)
    config = experiment.corpora[corpus]
    waiting = f"corpus {corpus} is being embedded by another run into {store.directory}; waiting for it"
    with store.writing(lambda: print(waiting, file=sys.stderr)):
        progress = EmbedProgress(corpus, 0, experiment.embed.max_rejected)
        dim, vocabulary, names = 0, None, set()
        for chunk in stream_ready(corpus, config):
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
        check_rejected(progress, parts)
        facts = {
            "encoder": ready_identity(corpus, config),
            "dim": dim,
            "dtype": experiment.embed.dtype if vocabulary is None else "float32",
            "tokens": config.format != "embeddings",
            "vocabulary": vocabulary,
            "precision": "given",
            **progress.facts(),
        }
        store.leave_unlogged()
        return facts_of(store.publish(parts, facts), up_to_date=False)
