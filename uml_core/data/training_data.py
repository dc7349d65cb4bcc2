"""From the store's tables to what a training run reads: labelled rows of each corpus, splits, shots, controls.

In: one `CorpusTable` a corpus. Out: `TrainingData`, which indexes into the tables without copying them.
Unpaired is an invariant: ids stay in the store; a training batch holds embeddings and class codes of one corpus.

Shape legend: N rows, D embedding width, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from uml_core.config import Experiment
from uml_core.data.agreement import Agreement, with_agreed
from uml_core.data.auxiliary_rows import auxiliary_rows
from uml_core.data.bridge_rows import BridgeRows, bridge_rows
from uml_core.data.label_names import alike, repeated_names, with_labels
from uml_core.data.labelled_rows import LabelledRows
from uml_core.data.row_statistics import RowStatistics
from uml_core.data.subsets import Rows
from uml_core.data.target_rows import TargetRows, target_rows
from uml_core.errors import InputError, listing
from uml_core.store.corpus_table import CorpusTable, is_unread


@dataclass(frozen=True)
class TrainingData:
    """Everything a run reads: train rows of each corpus, and the target's validation, test and shifted test rows."""

    classes: tuple[str, ...]
    target: str
    train: dict[str, LabelledRows]
    val: LabelledRows
    test: LabelledRows | None
    shifted: dict[str, LabelledRows]
    dropped: dict[str, dict[str, int]]  # corpus -> {class the target lacks, or "" for none: rows}
    bridges: tuple[BridgeRows, ...] = ()
    unlabelled: Mapping[str, LabelledRows] = field(default_factory=dict)  # by corpus, labels -1
    repeated: Mapping[str, int] = field(
        default_factory=dict
    )  # rows of unlabelled corpora left out: validated or tested
    agreements: Mapping[str, Agreement] = field(default_factory=dict)  # of corpora whose missing labels were sought
    unprojected: tuple[str, ...] = ()  # corpora of the target's width from another encoder, or an unknown one
    statistics: Mapping[str, RowStatistics] = field(default_factory=dict)  # of train rows that were added up before

    @property
    def labelled(self) -> LabelledRows:
        """What probes are fitted to, by the name `SequenceData` has for it."""
        return self.train[self.target]

    @property
    def found_in_embeddings(self) -> list[str]:
        """Which unlabelled rows were left out or given a class, in words, where embeddings were read."""
        words = "unlabelled rows left out, which are rows of validation or test"
        repeats = [f"{corpus}: {count} {words}" for corpus, count in self.repeated.items() if count]
        return repeats + [f"{corpus}: {found.words}" for corpus, found in self.agreements.items()]

    def warnings(self) -> list[str]:
        """What the user should know: dropped rows, classes without auxiliary rows, spaces that count as one."""
        lines = []
        if self.unprojected:
            width = self.train[self.target].dim
            lines.append(
                f"{listing(self.unprojected)}: as wide as {self.target} ({width}), so no projection lies between them; "
                "unless one encoder made both spaces, set model.shared_width to another width"
            )
        lines += repeated_names(self.classes)
        lines += [bridge.words for bridge in self.bridges]
        lines += self.found_in_embeddings
        for corpus, counts in self.dropped.items():
            if counts:
                shown = listing(f"{label or 'no label'} ({count})" for label, count in counts.items())
                lines.append(f"{corpus}: {sum(counts.values())} rows of classes the target lacks were dropped: {shown}")
            if hint := alike(counts, self.classes):
                lines.append(f"{corpus}: {hint}")
        for corpus, rows in self.train.items():
            missing = [name for code, name in enumerate(self.classes) if not (rows.labels == code).any()]
            if missing:
                lines.append(f"{corpus}: no rows for {len(missing)} of {len(self.classes)} classes: {listing(missing)}")
        trained = np.unique(self.labelled.labels)
        for split, held_out in (("validation", self.val), ("test", self.test)):
            lacking = [] if held_out is None else np.setdiff1d(trained, held_out.labels).tolist()
            if lacking:
                names = listing(self.classes[code] for code in lacking)
                lines.append(f"{self.target}: no {split} rows for {len(lacking)} of its classes: {names}")
        return lines


def build_training_data(
    experiment: Experiment, tables: Mapping[str, CorpusTable], given: Mapping[str, Rows] | None = None
) -> TrainingData:
    """Select splits, shots and controls of an experiment from its tables; `given` are the rows data.subset names.

    Raises:
        InputError: the target has no labelled train rows, a class of val or test has no train row, validation is
            empty, or an auxiliary corpus shares no class with the target.
    """
    tables, agreements = with_agreed(experiment, with_labels(experiment, tables))
    target = tables[experiment.target]
    found = target_rows(experiment, tables, given)
    classes, labels, splits = found.classes, found.labels, found.splits

    def labelled(selected: Rows) -> LabelledRows:
        counts = None if target.counts is None else target.counts[selected]
        return LabelledRows(target.embeddings, selected, labels[selected], lots=target.lots, counts=counts)

    train = {experiment.target: labelled(splits["train"])}
    dropped = dict(found.dropped)
    for corpus in experiment.auxiliaries:
        train[corpus], dropped[corpus] = auxiliary_rows(experiment, corpus, tables[corpus], classes)
        if corpus in experiment.agreeing:  # `found_in_embeddings` counts them
            dropped[corpus].pop("", None)
    shifted = {
        name: LabelledRows(tables[part.corpus].embeddings, part.rows, part.labels, part.corpus)
        for name, part in found.shifted.items()
    }
    for name, rows in shifted.items():
        if rows.dim != train[experiment.target].dim:
            raise InputError(
                f"corpora.{name} is a shifted test set {rows.dim} wide, and the target is "
                f"{train[experiment.target].dim} wide; embed both with one encoder"
            )
    bridges = bridge_rows(experiment, tables, classes)
    unlabelled, repeated = _unlabelled(experiment, tables, found)
    return TrainingData(
        classes=classes,
        target=experiment.target,
        train=train,
        val=labelled(splits["val"]),
        test=labelled(splits["test"]) if len(splits["test"]) else None,
        shifted=shifted,
        dropped=_without_bridged(dropped, bridges),
        bridges=bridges,
        unlabelled=unlabelled,
        repeated=repeated,
        agreements=agreements,
        unprojected=tuple(corpus for corpus in experiment.auxiliaries if _is_unprojected(experiment, corpus, train)),
    )


def _without_bridged(
    dropped: Mapping[str, dict[str, int]], bridges: tuple[BridgeRows, ...]
) -> dict[str, dict[str, int]]:
    """Texts about a bridge's classes are of no class of the target, and used nevertheless."""
    used = {name for bridge in bridges for name in bridge.classes}
    return {
        corpus: {name: count for name, count in counts.items() if name not in used}
        for corpus, counts in dropped.items()
    }


def _unlabelled(
    experiment: Experiment, tables: Mapping[str, CorpusTable], found: TargetRows
) -> tuple[dict[str, LabelledRows], dict[str, int]]:
    """The rows of unlabelled corpora, and how many of each were left out: whose embedding a held-out row has too.

    Raises:
        InputError: a corpus is not as wide as the target.
    """
    if not experiment.unlabelled_corpora:
        return {}, {}  # held-out rows, which may lie in a file, are read for a pile alone
    target, parts = tables[experiment.target].embeddings, {}
    shifted = [(tables[part.corpus].embeddings, part.rows) for part in found.shifted.values()]
    held_out = [(rows, picked) for rows, picked in [(target, found.held_out), *shifted] if not is_unread(rows)]
    known = {rows[row].tobytes() for rows, picked in held_out for row in picked}
    for corpus in experiment.unlabelled_corpora:
        embeddings = tables[corpus].embeddings
        if embeddings.shape[1] != target.shape[1]:
            raise InputError(
                f"corpora.{corpus} is an unlabelled pile {embeddings.shape[1]} wide, and the target is "
                f"{target.shape[1]} wide; embed both with one encoder"
            )
        is_new = [is_unread(embeddings) or row.tobytes() not in known for row in embeddings]
        rows = np.flatnonzero(is_new)
        parts[corpus] = LabelledRows(embeddings, rows, np.full(len(rows), -1))
    return parts, {corpus: len(tables[corpus].embeddings) - len(rows) for corpus, rows in parts.items()}


def _is_unprojected(experiment: Experiment, corpus: str, train: Mapping[str, LabelledRows]) -> bool:
    """Whether a corpus meets the target's embeddings without a projection, though another encoder made it."""
    width = train[experiment.target].dim
    ours, theirs = experiment.encoder_of(corpus), experiment.encoder_of(experiment.target)
    one_space = ours is not None and theirs is not None and ours.name == theirs.name
    taken_as_one = train[corpus].dim == width and experiment.model.shared_width in (None, width)
    return taken_as_one and not one_space and experiment.is_active(corpus)
