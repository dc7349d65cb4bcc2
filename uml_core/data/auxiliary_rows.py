"""The rows of a corpus beside the target, in the codes of given classes: its shots a class, under its control.

Shape legend: N rows.
"""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from uml_core.config import Experiment
from uml_core.data.label_names import alike
from uml_core.data.labelled_rows import LabelledRows, class_means, noise_like
from uml_core.data.subsets import take_shots
from uml_core.data.target_rows import class_codes, count_by_class
from uml_core.errors import InputError, listing
from uml_core.store.corpus_table import CorpusTable, is_unread


def auxiliary_rows(
    experiment: Experiment, corpus: str, table: CorpusTable, classes: tuple[str, ...]
) -> tuple[LabelledRows, dict[str, int]]:
    """The train rows of some classes of a corpus (at most its shots a class) under its control, and dropped rows.

    Raises:
        InputError: it has no row of any of them.
    """
    control = experiment.corpora[corpus].control
    rng = np.random.default_rng([experiment.data.split_seed % 2**32, len(corpus), *corpus.encode()])
    codes = _relabelled(table, classes, rng) if control == "unrelated" else class_codes(table, classes)
    train_code = table.split_names.index("train") if "train" in table.split_names else -1
    in_train = table.split_codes == train_code
    rows = np.flatnonzero(in_train & (codes >= 0))
    if not len(rows):
        hint = alike(count_by_class(table, np.flatnonzero(in_train)), classes)
        raise InputError(
            f"corpora.{corpus} shares no class with the target: it has {listing(table.label_names) or 'no labels'}, "
            f"the target has {listing(classes)}; use the same class names, or remove the corpus"
            f"{hint and '; ' + hint}"
        )
    shots = experiment.data.auxiliary_shots.get(corpus)
    if isinstance(shots, int):
        # The corpus's name enters the seed: two files in the same order must not give each other's partners.
        seed = experiment.data.split_seed + zlib.crc32(corpus.encode())
        rows = take_shots(codes, rows, shots=shots, seed=seed)
    dropped = count_by_class(table, np.flatnonzero(in_train & (codes < 0)))
    counts, is_read = None if table.counts is None else table.counts[rows], not is_unread(table.embeddings)
    labelled = LabelledRows(table.embeddings, rows, codes[rows], counts=counts)
    if shots == "average":  # of which rows that are not read are known, but not what takes their place
        labelled = class_means(labelled) if is_read else labelled
    if control == "shuffled_labels" and experiment.corpora[corpus].role == "bridge":
        # Classes swap names: as good a map, of the wrong names. Over rows every class would be the mean of all.
        labelled = replace(labelled, labels=rng.permutation(len(classes))[labelled.labels])
    elif control == "shuffled_labels":
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
