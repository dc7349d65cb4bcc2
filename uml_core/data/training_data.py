"""From the store's tables to what a training run reads: labelled rows of each corpus, splits, shots, controls.

In: one `CorpusTable` a corpus. Out: `TrainingData`, which indexes into the tables without copying them.
Unpaired is an invariant: ids stay in the store; a training batch holds embeddings and class codes of one corpus.

Shape legend: N rows, D embedding width, C classes.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from uml_core.config import Experiment
from uml_core.data.labelled_rows import LabelledRows, class_means, noise_like
from uml_core.data.row_statistics import RowStatistics
from uml_core.data.subsets import Rows, take_shots
from uml_core.data.target_rows import class_codes, count_by_class, target_rows
from uml_core.errors import InputError, listing
from uml_core.store.corpus_table import CorpusTable, is_unread

logger = logging.getLogger(__name__)


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
    statistics: Mapping[str, RowStatistics] = field(default_factory=dict)  # of train rows that were added up before

    @property
    def labelled(self) -> LabelledRows:
        """What probes are fitted to, by the name `SequenceData` has for it."""
        return self.train[self.target]

    def warnings(self) -> list[str]:
        """What the user should know: dropped rows, classes without auxiliary rows, spaces that count as one."""
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


def build_training_data(
    experiment: Experiment, tables: Mapping[str, CorpusTable], given: Mapping[str, Rows] | None = None
) -> TrainingData:
    """Select splits, shots and controls of an experiment from its tables; `given` are the rows data.subset names.

    Raises:
        InputError: the target has no labelled train rows, a class of val or test has no train row, validation is
            empty, or an auxiliary corpus shares no class with the target.
    """
    target = tables[experiment.target]
    found = target_rows(experiment, tables, given)
    classes, labels, splits = found.classes, found.labels, found.splits

    def labelled(selected: Rows) -> LabelledRows:
        return LabelledRows(target.embeddings, selected, labels[selected])

    train = {experiment.target: labelled(splits["train"])}
    dropped = dict(found.dropped)
    for corpus in experiment.auxiliaries:
        train[corpus], dropped[corpus] = _auxiliary_rows(experiment, corpus, tables[corpus], classes)
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
    return TrainingData(
        classes=classes,
        target=experiment.target,
        train=train,
        val=labelled(splits["val"]),
        test=labelled(splits["test"]) if len(splits["test"]) else None,
        shifted=shifted,
        dropped=dropped,
        unprojected=tuple(corpus for corpus in experiment.auxiliaries if _is_unprojected(experiment, corpus, train)),
    )


def _is_unprojected(experiment: Experiment, corpus: str, train: Mapping[str, LabelledRows]) -> bool:
    """Whether a corpus meets the target's embeddings without a projection, though another encoder made it."""
    width = train[experiment.target].dim
    ours, theirs = experiment.encoder_of(corpus), experiment.encoder_of(experiment.target)
    one_space = ours is not None and theirs is not None and ours.name == theirs.name
    taken_as_one = train[corpus].dim == width and experiment.model.shared_width in (None, width)
    return taken_as_one and not one_space and experiment.is_active(corpus)


def _auxiliary_rows(
    experiment: Experiment, corpus: str, table: CorpusTable, classes: tuple[str, ...]
) -> tuple[LabelledRows, dict[str, int]]:
    """The train rows of an auxiliary corpus (at most its shots a class) under its control, and dropped rows."""
    control = experiment.corpora[corpus].control
    rng = np.random.default_rng([experiment.data.split_seed % 2**32, len(corpus), *corpus.encode()])
    codes = _relabelled(table, classes, rng) if control == "unrelated" else class_codes(table, classes)
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
    dropped = count_by_class(table, np.flatnonzero(in_train & (codes < 0)))
    labelled, is_read = LabelledRows(table.embeddings, rows, codes[rows]), not is_unread(table.embeddings)
    if shots == "average":  # of which rows that are not read are known, but not what takes their place
        labelled = class_means(labelled) if is_read else labelled
    if control == "shuffled_labels":
        labelled = replace(labelled, labels=rng.permutation(labelled.labels))
    if control == "noise" and is_read:
        labelled = replace(labelled, embeddings=noise_like(labelled, rng), rows=np.arange(len(labelled)))
    return labelled, dropped


def _relabelled(table: CorpusTable, classes: tuple[str, ...], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Codes (N,) that give each of the corpus's own classes to a target class drawn by lot, all of them used."""
    own = len(table.label_names)
    if own == 0:
        return np.full(len(table.label_codes), -1)
    repeats = -(-own // len(classes))
    lot = rng.permutation(np.tile(np.arange(len(classes)), repeats))[:own]
    return np.where(table.label_codes >= 0, lot[table.label_codes], -1)
