"""From an experiment's rows to class prototypes, of the target's classes and of a bridge's.

Shape legend: C classes, E embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from uml_core.data.bridge_rows import BridgeRows
from uml_core.data.labelled_rows import LabelledRows
from uml_core.errors import InputError
from uml_core.models.closed_form.bridge import Bridge
from uml_core.models.closed_form.prior_model import ClassPrior
from uml_core.store.corpus_table import is_unread


def prior_of(corpus: str, parts: Sequence[LabelledRows], num_classes: int) -> ClassPrior:
    """The prototypes (C, E) of a corpus's rows, which may lie in several tables.

    Raises:
        InputError: a table was not read, because it does not fit in memory.
    """
    if any(is_unread(part.embeddings) for part in parts):
        raise InputError(f"corpora.{corpus} tells of a bridge, and does not fit into feed.memory_gib; raise it")
    rows, labels = np.concatenate([part.gathered() for part in parts]), np.concatenate([part.labels for part in parts])
    return ClassPrior.from_rows(corpus, rows.astype(np.float64), labels, num_classes)


def bridge_of(found: BridgeRows) -> Bridge:
    """A bridge's prototypes, and those of the texts about its classes."""
    num_classes = len(found.classes)
    return Bridge(
        name=found.corpus,
        prototypes=prior_of(found.corpus, [found.rows], num_classes),
        texts={name: prior_of(name, parts, num_classes) for name, parts in found.texts.items()},
        overlap=0 if found.removed else len(found.overlap),
    )
