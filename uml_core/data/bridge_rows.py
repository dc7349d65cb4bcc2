"""The rows of a bridge: labelled rows of other classes in the target's space, and what text corpora say of them.

In: corpora of role bridge and their tables. Out: `BridgeRows`, in the codes of the bridge's own classes. What they are
for: docs/method.md, Bridges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from uml_core.config import Experiment
from uml_core.data.auxiliary_rows import auxiliary_rows
from uml_core.data.labelled_rows import LabelledRows
from uml_core.data.same_names import same_names
from uml_core.data.target_rows import classes_in
from uml_core.errors import InputError, listing
from uml_core.store.corpus_table import CorpusTable


@dataclass(frozen=True)
class BridgeRows:
    """Rows of one bridge; all labels are codes in `classes`, which are its own."""

    corpus: str
    classes: tuple[str, ...]
    rows: LabelledRows
    texts: dict[str, tuple[LabelledRows, ...]]  # by the auxiliary corpus in whose space they are
    overlap: tuple[str, ...]  # classes that are named as one of the target's
    removed: bool  # whether those are left out of `classes`

    @property
    def words(self) -> str:
        """How many of its names are the target's."""
        named = f"{len(self.overlap)} classes of the bridge are named as one of the target's"
        what = "left out" if self.removed else "data.bridge_overlap=remove leaves them out"
        return f"{self.corpus}: {named}" + (f" ({what}): {listing(self.overlap)}" if self.overlap else "")


def bridge_rows(
    experiment: Experiment, tables: Mapping[str, CorpusTable], classes: tuple[str, ...]
) -> tuple[BridgeRows, ...]:
    """The rows of every bridge.

    Raises:
        InputError: a bridge has no labelled train rows, is not as wide as the target, or no text is about its classes.
    """
    return tuple(_bridge(experiment, tables, corpus, classes) for corpus in experiment.bridges)


def _bridge(
    experiment: Experiment, tables: Mapping[str, CorpusTable], corpus: str, classes: tuple[str, ...]
) -> BridgeRows:
    own, removed = classes_in(tables[corpus]), experiment.data.bridge_overlap == "remove"
    overlap = same_names(own, classes)
    kept = tuple(sorted(own.difference(overlap) if removed else own))
    if not kept:
        instead = ", beside those that are named as the target's" if own else ""
        raise InputError(f"corpora.{corpus} has role bridge, and no labelled train rows of other classes{instead}")
    width, dim = (tables[name].embeddings.shape[1] for name in (corpus, experiment.target))
    if width != dim:
        raise InputError(
            f"corpora.{corpus} is a bridge {width} wide, and the target is {dim} wide; a bridge is embedded by the "
            "target's encoder"
        )
    texts = {}
    for name in experiment.auxiliaries:
        described = [
            auxiliary_rows(experiment, each, tables[each], kept)[0]
            for each in (name, *_continued_by(experiment, name))
            if classes_in(tables[each]) & set(kept) and experiment.corpora[each].control != "unrelated"
        ]
        if described:
            texts[name] = tuple(described)
    if not texts:
        raise InputError(
            f"corpora.{corpus} has role bridge, and no auxiliary corpus says anything of its classes "
            f"({listing(kept)}); add texts about them to one ({listing(experiment.auxiliaries) or 'there is none'}), "
            "or as a corpus of role bridge with its encoder"
        )
    rows, _ = auxiliary_rows(experiment, corpus, tables[corpus], kept)
    return BridgeRows(corpus, kept, rows, texts, overlap, removed)


def _continued_by(experiment: Experiment, auxiliary: str) -> list[str]:
    """The corpora of role bridge that an auxiliary corpus's encoder embeds."""
    encoder = experiment.encoder_of(auxiliary)
    return [name for name in experiment.bridge_texts if experiment.encoder_of(name) == encoder]
