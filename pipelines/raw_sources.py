"""The raw pictures and sentences of runs that train an encoder: listed once, decoded once, for many runs.

In: an experiment and the rows selected from its store. Out: the same with their raw rows, in the order of the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pipelines.stores import corpus_store
from uml_core.config import Experiment, hash_of
from uml_core.config.used_by import deciding
from uml_core.data.training_data import TrainingData

if TYPE_CHECKING:
    from uml_core.corpora.rows import Row
    from uml_core.encoders.torch_encoder import Arrays


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

    def listed(self, experiment: Experiment, corpus: str) -> RawSource:
        """List a corpus, or remember it; of each name the last is remembered."""
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


def with_raw_rows(experiment: Experiment, data: TrainingData, sources: RawSources) -> TrainingData:
    """Add the target's pictures or clips, and the sentences of corpora whose encoder is trained, from where they lie.

    Raises InputError where a corpus is no longer what was embedded.
    """
    from uml_core.feed.pictures import picture_data, raw_rows
    from uml_core.training.fine_tuning import target_encoder

    pictures = sources.listed(experiment, experiment.target)
    texts = {name: sources.listed(experiment, name) for name in experiment.model.trained_auxiliaries}
    return replace(
        picture_data(experiment, data, pictures.ids, pictures.rows, target_encoder(experiment)),
        sentences={name: raw_rows(name, text.ids, text.rows) for name, text in texts.items()},
        kept=pictures.kept,
    )
