"""The target's classes and which of its rows are trained, validated and tested on: splits, shots, given subsets.

In: a table's labels and splits. Out: `TargetRows`, and the rows of shifted test sets in the target's classes. With
`data.classes: union` the classes of auxiliary corpora follow the target's own; its labelled rows of classes without a
train row (*unseen* ones) are all test rows, so nothing is chosen by them.

Shape legend: N rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from uml_core.config import Experiment
from uml_core.data.class_maps import read_class_map
from uml_core.data.label_names import alike
from uml_core.data.subsets import Rows, split_off, take_shots
from uml_core.errors import InputError, listing
from uml_core.store.corpus_table import CorpusTable
from uml_core.store.sequence_table import SequenceTable

MAX_VAL_SHOTS = 4  # the paper's few-shot validation has min(4, shots) samples per class (docs/method.md, Supervised)
MAIN_SPLITS = ("train", "val", "test")
NamedRows = CorpusTable | SequenceTable  # whose labels and splits are read here


@dataclass(frozen=True)
class ShiftedRows:
    """A shifted test set: rows of a corpus, a split of the target or another, with the target's class codes."""

    corpus: str
    rows: Rows
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True)
class TargetRows:
    """The target's classes, every row's class code (N,), and the labelled rows of each split.

    `held_out` are all rows that validation and test were given, also those that few-shot validation leaves out.
    `dropped` counts the rows of shifted test sets whose class the target lacks.
    """

    classes: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    splits: dict[str, Rows]
    shifted: dict[str, ShiftedRows]
    held_out: Rows
    dropped: dict[str, dict[str, int]]


def target_rows(
    experiment: Experiment, tables: Mapping[str, NamedRows], given: Mapping[str, Rows] | None
) -> TargetRows:
    """Select the target's classes, the labelled rows of each split, and the rows of shifted test sets.

    Args:
        experiment: the target's name, splits and shots.
        tables: of every corpus.
        given: the rows that data.subset names.

    Raises:
        InputError: there are no labelled train rows, or those of one class alone, a class of val or test has no train
            row (nor, in the union, an auxiliary one), validation is empty, or a corpus that is a shifted test set has
            no class of the target, or the name of one of its splits.
    """
    target, table = experiment.target, tables[experiment.target]
    train_rows = _split_rows(table, "train")
    if not len(train_rows):
        raise InputError(f"corpora.{target} has no labelled train rows (splits found: {listing(table.split_names)})")
    own, added = classes_in(table), _auxiliary_classes(experiment, tables)
    classes = (*sorted(own), *sorted(added - own))
    labels = class_codes(table, classes)
    _check_classes_have_train_rows(experiment, table, labels)
    if len(classes) == 1:
        raise InputError(
            f"corpora.{target} has one class, {classes[0]!r}, so every answer would be right; give it train rows of "
            "another class"
        )
    may_lack = frozenset(code for code, name in enumerate(classes) if name in added)
    splits, held_out = _target_splits(experiment, table, labels, given or {}, may_lack)
    if not len(splits["val"]):
        raise InputError(
            f"corpora.{target} has no validation rows: its train split has one row per class; "
            "add a val split, or more train rows"
        )
    candidates = {name: (target, _split_rows(table, name)) for name in table.split_names if name not in MAIN_SPLITS}
    for corpus in experiment.shifted_corpora:
        if len(candidates.get(corpus, ("", ()))[1]):
            raise InputError(
                f"corpora.{corpus} is a shifted test set, and so is a split of the target; rename one of them"
            )
        candidates[corpus] = corpus, np.arange(len(tables[corpus].label_codes))
    shifted, dropped = {}, {}
    for name, (corpus, rows) in candidates.items():
        path = experiment.evaluation.class_maps.get(name)
        codes = class_codes(tables[corpus], classes, {} if path is None else read_class_map(path, name, classes))[rows]
        if (codes >= 0).any():
            shifted[name] = ShiftedRows(corpus, rows[codes >= 0], codes[codes >= 0])
        elif corpus != target:
            raise InputError(
                f"corpora.{corpus} is a shifted test set without a class of the target: it has "
                f"{listing(tables[corpus].label_names)}, the target has {listing(classes)}; map its names in "
                f"evaluation.class_maps.{corpus}"
            )
        if len(rows):
            dropped[name] = count_by_class(tables[corpus], rows[codes < 0])
    return TargetRows(classes, labels, splits, shifted, held_out, dropped)


def classes_in(table: NamedRows) -> set[str]:
    """The classes that a corpus has train rows of."""
    return {table.label_names[code] for code in np.unique(table.label_codes[_split_rows(table, "train")])}


def _auxiliary_classes(experiment: Experiment, tables: Mapping[str, NamedRows]) -> set[str]:
    """The classes that need no row of the target; those of an unrelated control mean nothing to it.

    Those of a bridge are its own, unless the target has labelled rows of them in some split.
    """
    if experiment.data.classes == "target":
        return set()
    related = (name for name in experiment.auxiliaries if experiment.corpora[name].control != "unrelated")
    bridged = set().union(*(classes_in(tables[name]) for name in experiment.bridges))
    added = set().union(*(classes_in(tables[name]) for name in related))
    return added - bridged.difference(tables[experiment.target].label_names)


def count_by_class(table: NamedRows, rows: Rows) -> dict[str, int]:
    """Count some rows by their own class name, "" for none."""
    codes, which = np.unique(table.label_codes[rows], return_inverse=True)
    counts = np.bincount(which, None if table.counts is None else table.counts[rows])
    named = zip(codes, counts, strict=True)
    return {(table.label_names[code] if code >= 0 else ""): int(count) for code, count in named}


def _target_splits(
    experiment: Experiment,
    table: NamedRows,
    labels: npt.NDArray[np.int64],
    given: Mapping[str, Rows],
    may_lack: frozenset[int],
) -> tuple[dict[str, Rows], Rows]:
    """Train, val and test rows, and all that val and test were given before few-shot validation.

    Given splits come first, then fractions that are held out, then few-shot subsets. `may_lack` are the classes that
    need no train row.
    """
    data, seed = experiment.data, experiment.data.split_seed
    rows = {name: _rows_with_class(table, name, labels) for name in MAIN_SPLITS}
    if given:
        rows = _given_splits(experiment, labels, rows, given, may_lack)
    if not len(rows["test"]) and data.test_fraction > 0:
        rows["train"], rows["test"] = split_off(labels, rows["train"], fraction=data.test_fraction, seed=seed)
    is_seen = np.isin(labels[rows["val"]], labels[rows["train"]])
    rows["test"] = np.sort(np.concatenate([rows["test"], rows["val"][~is_seen]]))
    rows["val"] = rows["val"][is_seen]
    val_shots = data.val_shots or ("all" if len(rows["val"]) else "same")
    if not len(rows["val"]):
        rows["train"], rows["val"] = split_off(labels, rows["train"], fraction=data.val_fraction, seed=seed)
    held_out = np.concatenate([rows["val"], rows["test"]])
    if data.shots is not None:
        rows["train"] = take_shots(labels, rows["train"], shots=data.shots, seed=seed)
        if val_shots == "same":
            val_shots = min(MAX_VAL_SHOTS, data.shots)
    if isinstance(val_shots, int):
        rows["val"] = take_shots(labels, rows["val"], shots=val_shots, seed=seed)
    return rows, held_out


def _given_splits(
    experiment: Experiment,
    labels: npt.NDArray[np.int64],
    rows: dict[str, Rows],
    given: Mapping[str, Rows],
    may_lack: frozenset[int],
) -> dict[str, Rows]:
    """The splits with the rows of data.subset in place of the corpus's own; test rows stay test rows.

    Train rows that it does not name are all of split train that it does not name otherwise.

    Raises:
        InputError: a class has no train row in the file, or a test row is trained or validated on.
    """
    setting, data = f"data.subset is {experiment.data.subset}", experiment.data
    none = rows["train"][:0]
    held_out = np.concatenate([given.get("val", none), given.get("test", none)])
    train = given.get("train", np.setdiff1d(rows["train"], held_out))
    used = np.concatenate([train, given.get("val", none)])
    splits = {"train": train, "val": given.get("val", np.setdiff1d(rows["val"], train))}
    splits["test"] = given.get("test", rows["test"])
    if not len(splits["test"]) and data.test_fraction > 0:
        rest = np.setdiff1d(rows["train"], used)
        _, splits["test"] = split_off(labels, rest, fraction=data.test_fraction, seed=data.split_seed)
    both = np.intersect1d(used, rows["test"])
    if len(both):
        raise InputError(f"{setting}, and {len(both)} rows it trains or validates on are of split test; remove them")
    splits = {name: part[labels[part] >= 0] for name, part in splits.items()}
    lacking = set(labels[labels >= 0].tolist()) - set(labels[splits["train"]].tolist()) - may_lack
    if lacking:
        raise InputError(f"{setting}, which has no train row for {len(lacking)} of the target's classes")
    return splits


def class_codes(
    table: NamedRows, classes: tuple[str, ...], aliases: Mapping[str, str] | None = None
) -> npt.NDArray[np.int64]:
    """Translate a table's label codes into the target's class codes (N,), -1 for classes it lacks."""
    position, ours = {name: index for index, name in enumerate(classes)}, aliases or {}
    translation = np.array([position.get(ours.get(name, name), -1) for name in table.label_names] + [-1])
    return translation.astype(np.int64)[table.label_codes]  # code -1 (no label) picks the last entry


def _split_rows(table: NamedRows, split: str) -> Rows:
    if split not in table.split_names:
        return np.empty(0, dtype=np.int64)
    in_split = table.split_codes == table.split_names.index(split)
    return np.flatnonzero(in_split & (table.label_codes >= 0))


def _rows_with_class(table: NamedRows, split: str, labels: npt.NDArray[np.int64]) -> Rows:
    rows = _split_rows(table, split)
    return rows[labels[rows] >= 0]


def _check_classes_have_train_rows(experiment: Experiment, table: NamedRows, labels: npt.NDArray[np.int64]) -> None:
    whose, instead = " of its own or of an auxiliary corpus", ""
    if experiment.data.classes == "target":
        whose, instead = "", ", or set data.classes=union where an auxiliary corpus has them"
    for split in ("val", "test"):
        rows = _split_rows(table, split)
        counts = count_by_class(table, rows[labels[rows] < 0])
        lacking, hint = set(counts), alike(counts, classes_in(table))
        if lacking:
            raise InputError(
                f"corpora.{experiment.target} has classes in {split} without any train row{whose}: "
                f"{listing(sorted(lacking))}; add train rows for them, or remove them from {split}{instead}"
                f"{hint and '; ' + hint}"
            )
