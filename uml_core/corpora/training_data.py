"""From the store's tables to what a training run reads: labelled rows of each corpus, splits, shots, controls.

In: one `CorpusTable` a corpus. Out: `TrainingData`, which indexes into the tables without copying them.
Unpaired is an invariant: ids stay in the store; a training batch holds embeddings and class codes of one corpus.

Shape legend: N rows, D embedding width, C classes.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from uml_core.config import Experiment
from uml_core.corpora.replaced import class_means, noise_like
from uml_core.corpora.subsets import Rows, split_off, take_shots
from uml_core.errors import InputError, listing
from uml_core.mapped import release
from uml_core.store import CorpusTable

logger = logging.getLogger(__name__)

MAX_VAL_SHOTS = 4  # few-shot validation has min(4, shots) samples per class (PAPER.md section 2)
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
    """

    classes: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    splits: dict[str, Rows]
    shifted: dict[str, Rows]
    taken: Rows


@dataclass(frozen=True)
class LabelledRows:
    """Rows of one table with their class codes: embeddings[rows] (N, D) belong to labels (N,)."""

    embeddings: npt.NDArray[np.float32]  # the whole table, shared
    rows: Rows
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def dim(self) -> int:
        """Embedding width D."""
        return int(self.embeddings.shape[1])

    def gathered(self) -> npt.NDArray[np.float32]:
        """Return the embeddings of these rows as one array (N, D)."""
        return self.embeddings[self.rows]

    def blocks(self, num_rows: int) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]:
        """Yield embeddings (N, D) and labels (N,) of so many rows at a time: a corpus in a file is never read whole."""
        for start in range(0, len(self.rows), num_rows):
            block = slice(start, start + num_rows)
            yield np.asarray(self.embeddings[self.rows[block]]), self.labels[block]
            release(self.embeddings)


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
    unprojected: tuple[str, ...] = ()  # corpora of the target's width from another encoder, or an unknown one

    def warnings(self) -> list[str]:
        """Return what the user should know: dropped rows, classes without auxiliary rows, spaces taken as one."""
        lines = []
        if self.unprojected:
            width = self.train[self.target].dim
            lines.append(
                f"{listing(self.unprojected)}: as wide as {self.target} ({width}), so no projection lies between them; "
                "unless one encoder made both spaces, set model.shared_width to another width"
            )
        for corpus, counts in self.dropped.items():
            if counts:
                shown = listing(f"{label or 'no label'} ({count})" for label, count in counts.items())
                lines.append(f"{corpus}: {sum(counts.values())} rows of classes the target lacks were dropped: {shown}")
        for corpus, rows in self.train.items():
            missing = [name for code, name in enumerate(self.classes) if not (rows.labels == code).any()]
            if missing:
                lines.append(f"{corpus}: no rows for {len(missing)} of {len(self.classes)} classes: {listing(missing)}")
        return lines


def build_training_data(experiment: Experiment, tables: Mapping[str, CorpusTable]) -> TrainingData:
    """Select splits, shots and controls of an experiment from its tables.

    Raises:
        InputError: the target has no labelled train rows, a class of val or test has no train row, validation is
            empty, or an auxiliary corpus shares no class with the target.
    """
    target = tables[experiment.target]
    found = target_rows(experiment, target)
    classes, labels, splits = found.classes, found.labels, found.splits

    def labelled(selected: Rows) -> LabelledRows:
        return LabelledRows(target.embeddings, selected, labels[selected])

    train = {experiment.target: labelled(splits["train"])}
    dropped: dict[str, dict[str, int]] = {}
    for corpus in experiment.auxiliaries:
        train[corpus], dropped[corpus] = _auxiliary_rows(experiment, corpus, tables[corpus], classes)
    return TrainingData(
        classes=classes,
        target=experiment.target,
        train=train,
        val=labelled(splits["val"]),
        test=labelled(splits["test"]) if len(splits["test"]) else None,
        shifted={name: labelled(rows) for name, rows in found.shifted.items()},
        dropped=dropped,
        unprojected=tuple(corpus for corpus in experiment.auxiliaries if _is_unprojected(experiment, corpus, train)),
    )


def _is_unprojected(experiment: Experiment, corpus: str, train: Mapping[str, LabelledRows]) -> bool:
    """Return whether a corpus meets the target's embeddings without a projection, though another encoder made it."""
    width = train[experiment.target].dim
    ours, theirs = experiment.encoder_of(corpus), experiment.encoder_of(experiment.target)
    one_space = ours is not None and theirs is not None and ours.name == theirs.name
    taken_as_one = train[corpus].dim == width and experiment.model.shared_width in (None, width)
    return taken_as_one and not one_space and experiment.loss_weight(corpus) > 0


def target_rows(experiment: Experiment, table: NamedRows) -> TargetRows:
    """Return the target's classes and the labelled rows of each split.

    Raises:
        InputError: there are no labelled train rows, a class of val or test has no train row, or validation is empty.
    """
    train_rows = _split_rows(table, "train")
    if not len(train_rows):
        found = listing(table.split_names)
        raise InputError(f"corpora.{experiment.target} has no labelled train rows (splits found: {found})")
    classes = tuple(sorted(table.label_names[code] for code in np.unique(table.label_codes[train_rows])))
    labels = _class_codes(table, classes)
    _check_classes_have_train_rows(experiment.target, table, labels)
    splits, taken = _target_splits(experiment, table, labels)
    if not len(splits["val"]):
        raise InputError(
            f"corpora.{experiment.target} has no validation rows: its train split has one row per class; "
            "add a val split, or more train rows"
        )
    extra = [name for name in table.split_names if name not in MAIN_SPLITS]
    shifted = {name: _rows_with_class(table, name, labels) for name in extra}
    return TargetRows(classes, labels, splits, {name: rows for name, rows in shifted.items() if len(rows)}, taken)


def _target_splits(
    experiment: Experiment, table: NamedRows, labels: npt.NDArray[np.int64]
) -> tuple[dict[str, Rows], Rows]:
    """Return train, val and test rows, and all that val and test were given before few-shot validation.

    Given splits come first, then held-out fractions, then few-shot subsets.
    """
    data, seed = experiment.data, experiment.data.split_seed
    rows = {name: _rows_with_class(table, name, labels) for name in MAIN_SPLITS}
    if not len(rows["test"]) and data.test_fraction > 0:
        rows["train"], rows["test"] = split_off(labels, rows["train"], fraction=data.test_fraction, seed=seed)
    if not len(rows["val"]):
        rows["train"], rows["val"] = split_off(labels, rows["train"], fraction=data.val_fraction, seed=seed)
    taken = np.concatenate([rows["val"], rows["test"]])
    if data.shots is not None:
        rows["train"] = take_shots(labels, rows["train"], shots=data.shots, seed=seed)
        rows["val"] = take_shots(labels, rows["val"], shots=min(MAX_VAL_SHOTS, data.shots), seed=seed)
    return rows, taken


def _auxiliary_rows(
    experiment: Experiment, corpus: str, table: CorpusTable, classes: tuple[str, ...]
) -> tuple[LabelledRows, dict[str, int]]:
    """Return the train rows of an auxiliary corpus (at most its shots a class) under its control, and dropped rows."""
    control = experiment.corpora[corpus].control
    rng = np.random.default_rng([experiment.data.split_seed % 2**32, len(corpus), *corpus.encode()])
    codes = _relabelled(table, classes, rng) if control == "unrelated" else _class_codes(table, classes)
    train_code = table.split_names.index("train") if "train" in table.split_names else -1
    in_train = table.split_codes == train_code
    rows = np.flatnonzero(in_train & (codes >= 0))
    if not len(rows):
        raise InputError(
            f"corpora.{corpus} shares no class with the target: it has {listing(table.label_names) or 'no labels'}, "
            f"the target has {listing(classes)}; use the same class names, or remove the corpus"
        )
    shots = experiment.data.auxiliary_shots.get(corpus)
    if isinstance(shots, int):
        # The corpus's name enters the seed: two files in the same order must not give each other's partners.
        seed = experiment.data.split_seed + zlib.crc32(corpus.encode())
        rows = take_shots(codes, rows, shots=shots, seed=seed)
    foreign = table.label_codes[in_train & (codes < 0)]
    dropped = {
        (table.label_names[code] if code >= 0 else ""): int(count)
        for code, count in zip(*np.unique(foreign, return_counts=True), strict=True)
    }
    labelled = LabelledRows(table.embeddings, rows, codes[rows])
    if shots == "average":
        labelled = class_means(labelled)
    if control == "shuffled_labels":
        labelled = replace(labelled, labels=rng.permutation(labelled.labels))
    if control == "noise":
        labelled = replace(labelled, embeddings=noise_like(labelled, rng), rows=np.arange(len(labelled)))
    return labelled, dropped


def _relabelled(table: CorpusTable, classes: tuple[str, ...], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return codes (N,) that hand each of the corpus's own classes to a target class drawn by lot, all of them used."""
    own = len(table.label_names)
    if own == 0:
        return np.full(len(table.label_codes), -1)
    repeats = -(-own // len(classes))
    lot = rng.permutation(np.tile(np.arange(len(classes)), repeats))[:own]
    return np.where(table.label_codes >= 0, lot[table.label_codes], -1)


def _class_codes(table: NamedRows, classes: tuple[str, ...]) -> npt.NDArray[np.int64]:
    """Translate a table's label codes into the target's class codes (N,), -1 for classes it lacks."""
    position = {name: index for index, name in enumerate(classes)}
    translation = np.array([position.get(name, -1) for name in table.label_names] + [-1], dtype=np.int64)
    return translation[table.label_codes]  # code -1 (no label) picks the last entry


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
