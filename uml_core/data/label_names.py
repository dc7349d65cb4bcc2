"""Labels of all corpora brought together by the setting `data.labels`, and words for those that would be.

In: a corpus's table. Out: the same rows under other class names. It acts on what is selected, never on the store, so
that another setting needs no new embedding.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from uml_core.config import Experiment
from uml_core.config.training import LabelsConfig
from uml_core.errors import InputError, listing
from uml_core.store.corpus_table import CorpusTable
from uml_core.store.sequence_table import SequenceTable

Table = TypeVar("Table", CorpusTable, SequenceTable)
SEPARATOR = "|"  # of several classes in one label
MENDED = "after strip and casefold: data.labels.normalise=strip_casefold brings them together"


def with_labels(experiment: Experiment, tables: Mapping[str, Table]) -> dict[str, Table]:
    """Every corpus's table under the class names that `data.labels` gives its rows.

    Raises:
        InputError: a corpus has labels that hold several classes.
    """
    found = {corpus: _renamed(table, experiment.data.labels) for corpus, table in tables.items()}
    for corpus, table in found.items():
        if corpus not in experiment.unlabelled_corpora:  # whose labels are not read
            _check_one_class_each(corpus, table)
    return found


def _renamed(table: Table, settings: LabelsConfig) -> Table:
    def plain(name: str) -> str:
        return name if settings.normalise == "none" else normalised(name)

    mapped = {plain(theirs): plain(ours) for theirs, ours in settings.map.items()}
    names: list[str] = [mapped.get(plain(name), plain(name)) for name in table.label_names]
    if tuple(names) == table.label_names:
        return table
    together: list[str] = sorted(set(names))
    codes = np.array([*map(together.index, names), -1], dtype=np.int64)  # code -1 (no label) picks the last entry
    return replace(table, label_names=tuple(together), label_codes=codes[table.label_codes])


def normalised(name: str) -> str:
    return name.strip().casefold()


def _check_one_class_each(corpus: str, table: CorpusTable | SequenceTable) -> None:
    """Refuse labels such as a|b, where a part is a label of its own or in another such label."""
    parts = {name: [part.strip() for part in name.split(SEPARATOR)] for name in table.label_names}
    uses = Counter(part for name in parts for part in set(parts[name]))
    several = [name for name, own in parts.items() if len(own) > 1 and any(uses[part] > 1 for part in own)]
    if several:
        raise InputError(
            f"corpora.{corpus} has labels that hold several classes: {listing(map(repr, several))}; a row has one: "
            "write the row once for each, or name the one that counts, "
            f"data.labels.map={{'{several[0]}': {parts[several[0]][0]}}}"
        )


def alike(counts: Mapping[str, int], classes: Iterable[str]) -> str:
    """In words, how many rows of other labels have a class's label after strip and casefold; "" where none has."""
    rows, known = defaultdict[str, int](int), {normalised(name): name for name in classes}
    for name, count in counts.items():
        if normalised(name) in known:
            rows[known[normalised(name)]] += count
    if not rows:
        return ""
    shown = listing(f"{count} rows match '{name}'" for name, count in rows.items())
    return f"{shown} {MENDED}"


def repeated_names(classes: Sequence[str]) -> list[str]:
    """In words, classes that are one after strip and casefold; no line where there are none."""
    counts = Counter(map(normalised, classes))
    same = [repr(name) for name in classes if counts[normalised(name)] > 1]
    return [f"classes {listing(same)} are the same {MENDED}"] if same else []
