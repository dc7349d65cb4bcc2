"""The target's classes and which of its rows are trained, validated and tested on: splits, shots, given subsets.

In: a table's labels and splits. Out: `TargetRows`, and the rows of shifted test sets in the target's classes.

Shape legend: N rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from uml_core.config import Experiment
from uml_core.data.class_maps import read_class_map
from uml_core.data.subsets import Rows, split_off, take_shots
from uml_core.errors import InputError, listing

MAX_VAL_SHOTS = 4  # few-shot validation has min(4, shots) samples per class (docs/method.md, Supervised)
MAIN_SPLITS = ("train", "val", "test")


class NamedRows(Protocol):
    """What a table of embeddings and a table of sequences have in common: the label and split of every row (N,)."""

    @property
    def label_codes(self) -> npt.NDArray[np.int64]: ...  # -1 where there is no label
    @property
    def label_names(self) -> tuple[str, ...]: ...
    @property
    def split_codes(self) -> npt.NDArray[np.int64]: ...
    @property
    def split_names(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class TargetRows:
    """The target's classes, every row's class code (N,), and the labelled rows of each split.

    `taken` are all rows that validation and test were given, those that few-shot validation leaves out among them.
    `dropped` counts the rows of shifted test sets whose class the target lacks.
    """

    classes: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    splits: dict[str, Rows]
    shifted: dict[str, Rows]
    taken: Rows
    dropped: dict[str, dict[str, int]]


def target_rows(experiment: Experiment, table: NamedRows, given: Mapping[str, Rows] | None = None) -> TargetRows:
    """Return the target's classes and the labelled rows of each split; `given` are the rows data.subset names.

    Raises:
        InputError: there are no labelled train rows, a class of val or test has no train row, or validation is empty.
    """
    train_rows = _split_rows(table, "train")
    if not len(train_rows):
        found = listing(table.split_names)
        raise InputError(f"corpora.{experiment.target} has no labelled train rows (splits found: {found})")
    classes = tuple(sorted(table.label_names[code] for code in np.unique(table.label_codes[train_rows])))
    labels = class_codes(table, classes)
    _check_classes_have_train_rows(experiment.target, table, labels)
    splits, taken = _target_splits(experiment, table, labels, given or {})
    if not len(splits["val"]):
        raise InputError(
            f"corpora.{experiment.target} has no validation rows: its train split has one row per class; "
            "add a val split, or more train rows"
        )
    shifted, dropped = {}, {}
    for name in table.split_names:
        rows = _split_rows(table, name)
        if name not in MAIN_SPLITS and len(rows):
            codes = shifted_codes(experiment, name, table, classes)
            labels[rows] = codes[rows]
            shifted[name], dropped[name] = rows[codes[rows] >= 0], count_by_class(table, rows[codes[rows] < 0])
    shifted = {name: rows for name, rows in shifted.items() if len(rows)}
    return TargetRows(classes, labels, splits, shifted, taken, dropped)


def shifted_codes(
    experiment: Experiment, name: str, table: NamedRows, classes: tuple[str, ...]
) -> npt.NDArray[np.int64]:
    """Return the target's class code of every row (N,) in the names of a shifted test set; -1 for classes it lacks."""
    path = experiment.evaluation.class_maps.get(name)
    aliases = {} if path is None else read_class_map(path, name, classes)
    return class_codes(table, classes, aliases)


def shifted_corpus_rows(
    experiment: Experiment,
    corpus: str,
    tables: Mapping[str, NamedRows],
    classes: tuple[str, ...],
    *,
    taken: Mapping[str, object],
) -> tuple[Rows, npt.NDArray[np.int64], dict[str, int]]:
    """Return the rows of a corpus that is a shifted test set, the code of every row, and the rows that were dropped.

    Raises:
        InputError: none of its classes is the target's, or a split of the target (`taken`) has its name.
    """
    table = tables[corpus]
    if corpus in taken:
        raise InputError(f"corpora.{corpus} is a shifted test set, and so is a split of the target; rename one of them")
    codes = shifted_codes(experiment, corpus, table, classes)
    rows = np.flatnonzero(codes >= 0)
    if not len(rows):
        raise InputError(
            f"corpora.{corpus} is a shifted test set without a class of the target: it has "
            f"{listing(table.label_names)}, the target has {listing(classes)}; map its names in "
            f"evaluation.class_maps.{corpus}"
        )
    return rows, codes, count_by_class(table, np.flatnonzero(codes < 0))


def count_by_class(table: NamedRows, rows: Rows) -> dict[str, int]:
    """Count some rows by their own class name, "" for none."""
    codes, counts = np.unique(table.label_codes[rows], return_counts=True)
    named = zip(codes, counts, strict=True)
    return {(table.label_names[code] if code >= 0 else ""): int(count) for code, count in named}


def _target_splits(
    experiment: Experiment, table: NamedRows, labels: npt.NDArray[np.int64], given: Mapping[str, Rows]
) -> tuple[dict[str, Rows], Rows]:
    """Return train, val and test rows, and all that val and test were given before few-shot validation.

    Given splits come first, then held-out fractions, then few-shot subsets.
    """
    data, seed = experiment.data, experiment.data.split_seed
    rows = {name: _rows_with_class(table, name, labels) for name in MAIN_SPLITS}
    if given:
        rows = _given_splits(experiment, labels, rows, given)
    if not len(rows["test"]) and data.test_fraction > 0:
        rows["train"], rows["test"] = split_off(labels, rows["train"], fraction=data.test_fraction, seed=seed)
    if not len(rows["val"]):
        rows["train"], rows["val"] = split_off(labels, rows["train"], fraction=data.val_fraction, seed=seed)
    taken = np.concatenate([rows["val"], rows["test"]])
    if data.shots is not None:
        rows["train"] = take_shots(labels, rows["train"], shots=data.shots, seed=seed)
        rows["val"] = take_shots(labels, rows["val"], shots=min(MAX_VAL_SHOTS, data.shots), seed=seed)
    return rows, taken


def _given_splits(
    experiment: Experiment, labels: npt.NDArray[np.int64], rows: dict[str, Rows], given: Mapping[str, Rows]
) -> dict[str, Rows]:
    """Return the splits with the rows of data.subset in place of the corpus's own; its test rows stay what they are.

    Raises:
        InputError: a class has no train row in the file, or a test row is trained or validated on.
    """
    setting, data = f"data.subset is {experiment.data.subset}", experiment.data
    used = np.concatenate([given["train"], given.get("val", given["train"][:0])])
    splits = {"train": given["train"], "val": given.get("val", np.setdiff1d(rows["val"], given["train"]))}
    splits["test"] = given.get("test", rows["test"])
    if not len(splits["test"]) and data.test_fraction > 0:
        rest = np.setdiff1d(rows["train"], used)
        _, splits["test"] = split_off(labels, rest, fraction=data.test_fraction, seed=data.split_seed)
    both = np.intersect1d(used, rows["test"])
    if len(both):
        raise InputError(f"{setting}, and {len(both)} rows it trains or validates on are of split test; remove them")
    splits = {name: part[labels[part] >= 0] for name, part in splits.items()}
    lacking = np.setdiff1d(np.unique(labels[labels >= 0]), labels[splits["train"]])
    if len(lacking):
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


def _check_classes_have_train_rows(corpus: str, table: NamedRows, labels: npt.NDArray[np.int64]) -> None:
    for split in ("val", "test"):
        rows = _split_rows(table, split)
        lacking = {table.label_names[code] for code in table.label_codes[rows[labels[rows] < 0]]}
        if lacking:
            raise InputError(
                f"corpora.{corpus} has classes in {split} without any train row: {listing(sorted(lacking))}; "
                f"add train rows for them, or remove them from {split}"
            )
