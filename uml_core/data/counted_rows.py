"""Corpora of which a solved head takes every train row: to count them is enough, and no list of them is made.

In: an experiment, and how many rows a corpus has of each split and class. What is then counted is a table's
`with_counted`; rows of other splits are read one by one.
"""

from __future__ import annotations

from collections.abc import Mapping

from uml_core.config import Experiment
from uml_core.config.training import LabelsConfig
from uml_core.data.row_statistics import KEPT_ROWS
from uml_core.data.subsets import Subset


def is_counted(
    experiment: Experiment, corpus: str, rows: Mapping[str, Mapping[str, int]], subset: Subset | None
) -> bool:
    """Whether all labelled rows of split train are taken, by splits and classes alone.

    Args:
        experiment: what is trained.
        corpus: one that does not fit in memory.
        rows: of each split and class ("" for none), as a store's manifest has them.
        subset: the file of data.subset.
    """
    data = experiment.data
    if not experiment.solved_from or experiment.bridges or data.labels != LabelsConfig():  # which makes classes one
        return False
    if corpus in experiment.auxiliaries:
        is_drawn = experiment.corpora[corpus].control in ("noise", "shuffled_labels")
        return corpus not in data.auxiliary_shots and not is_drawn and corpus not in experiment.agreeing
    if corpus != experiment.target or data.shots is not None or (subset is not None and subset.counts is None):
        return False
    train, val, test = ({name for name in rows.get(split, {}) if name} for split in ("train", "val", "test"))
    is_many = sum(count for name, count in rows.get("train", {}).items() if name) > KEPT_ROWS
    return is_many and bool(train & val) and (bool(test) or not data.test_fraction)
