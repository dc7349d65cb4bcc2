"""Labels of all corpora brought together by the setting `data.labels`, and words for those that would be.

In: a corpus's table. Out: the same rows under other class names. It acts on what is selected, never on the store, so
that another setting needs no new embedding.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from uml_core.config import Experiment
from uml_core.config.training import LabelsConfig
from uml_core.errors import InputError, listing, nearest
from uml_core.store.corpus_table import CorpusTable
from uml_core.store.sequence_table import SequenceTable

Table = TypeVar("Table", CorpusTable, SequenceTable)
SEPARATOR = "|"  # of several classes in one label
MENDED = "after strip and casefold: data.labels.normalise=strip_casefold brings them together"


def with_labels(experiment: Experiment, tables: Mapping[str, Table]) -> dict[str, Table]:
    """Every corpus's table under the class names that `data.labels` gives its rows.

    Raises:
        InputError: a corpus has labels that hold several classes, or the map names a label of no corpus.
    """
    settings = experiment.data.labels
    _check_map(settings, _labels_of(tables))
    found = {corpus: _renamed(table, settings) for corpus, table in tables.items()}
    labelled = {corpus: found[corpus] for corpus in found if corpus not in experiment.unlabelled_corpora}
    labels = _labels_of(labelled)
    for corpus, table in labelled.items():
        _check_one_class_each(corpus, table.label_names, labels)
    return found


def _labels_of(tables: Mapping[str, Table]) -> set[str]:
    return {name for table in tables.values() for name in table.label_names}


def _plain(name: str, settings: LabelsConfig) -> str:
    return name if settings.normalise == "none" else normalised(name)


def _check_map(settings: LabelsConfig, labels: Iterable[str]) -> None:
    known = {_plain(name, settings) for name in labels}
    for theirs in settings.map:
        if _plain(theirs, settings) not in known:
            raise InputError(
                f"data.labels.map has '{theirs}', a label of no corpus{nearest(theirs, sorted(known))}; the labels "
                f"are {listing(sorted(known))}"
            )


def _renamed(table: Table, settings: LabelsConfig) -> Table:
    mapped = {_plain(theirs, settings): _plain(ours, settings) for theirs, ours in settings.map.items()}
    plain = [_plain(name, settings) for name in table.label_names]
    names: list[str] = [mapped.get(name, name) for name in plain]
    if tuple(names) == table.label_names:
        return table
    together: list[str] = sorted(set(names))
    code_of: dict[str, int] = {name: code for code, name in enumerate(together)}
    codes = np.array([*map(code_of.__getitem__, names), -1], dtype=np.int64)  # code -1 (no label) picks the last entry
    return replace(table, label_names=tuple(together), label_codes=codes[table.label_codes])


def normalised(name: str) -> str:
    return name.strip().casefold()


def _check_one_class_each(corpus: str, names: Sequence[str], labels: Collection[str]) -> None:
    """Refuse labels such as a|b where a part is one of all corpora's labels; food|fruit may be one class."""
    several = {name: [part for part in map(str.strip, name.split(SEPARATOR)) if part in labels] for name in names}
    several = {name: parts for name, parts in several.items() if SEPARATOR in name and parts}
    if several:
        first, parts = next(iter(several.items()))
        raise InputError(
            f"corpora.{corpus} has labels that hold several classes: {listing(map(repr, several))}; a row has one: "
            f"write the row once for each, or name the one that counts, data.labels.map={{'{first}': {parts[0]}}}"
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
