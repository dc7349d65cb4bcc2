"""Rows without a label, and the class whose labelled rows in the same corpus they agree with clearly.

In: tables under `corpora.*.missing_labels`. Out: the same tables with more labels, and how many. The labels come from
embeddings of one corpus alone, so nothing is paired. Controls act on what comes out. docs/train.md, Rows without a
label.

Shape legend: N rows, D embedding width, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from uml_core.config import Experiment
from uml_core.data.labelled_rows import BLOCK_ROWS, LabelledRows, class_means
from uml_core.data.target_rows import classes_in
from uml_core.errors import InputError, listing
from uml_core.store.corpus_table import CorpusTable, is_unread

MIN_CLASSES = 5  # of fewer the spread says nothing


class Agreement(NamedTuple):
    """How many train rows had no label, and how many of them were given one."""

    agreed: int
    rows: int

    @property
    def words(self) -> str:
        """Both numbers, as a user reads them."""
        return (
            f"{self.agreed} of {self.rows} rows without a label were given a class by agreement with labelled ones, "
            f"{self.rows - self.agreed} agree with none and were dropped"
        )


def with_agreed(
    experiment: Experiment, tables: Mapping[str, CorpusTable]
) -> tuple[dict[str, CorpusTable], dict[str, Agreement]]:
    """Every corpus's table, with labels for train rows that agree with a class, and their numbers where any was read.

    Raises:
        InputError: a corpus has too few classes of its own to agree with.
    """
    found, agreements = dict(tables), {}
    for corpus in experiment.agreeing:
        table, known = tables[corpus], classes_in(tables[corpus])
        if len(known) < MIN_CLASSES:
            raise InputError(
                f"corpora.{corpus}.missing_labels is agree, which needs labelled train rows of at least {MIN_CLASSES} "
                f"classes, such as their names; it has {listing(sorted(known)) or 'none'}"
            )
        if not is_unread(table.embeddings):
            found[corpus], agreements[corpus] = _agreed(table)
    return found, agreements


def _agreed(table: CorpusTable) -> tuple[CorpusTable, Agreement]:
    is_train, codes = table.split_codes == table.split_names.index("train"), table.label_codes.copy()
    labelled, rows = (np.flatnonzero(is_train & has) for has in (codes >= 0, codes < 0))
    means = class_means(LabelledRows(table.embeddings, labelled, codes[labelled]))
    start = 0
    for block_ND, _ in LabelledRows(table.embeddings, rows, codes[rows]).blocks(BLOCK_ROWS):
        best = agreed_class(block_ND, means.embeddings)
        codes[rows[start : start + len(best)]] = np.append(means.labels, -1)[best]
        start += len(best)
    return replace(table, label_codes=codes), Agreement(int((codes[rows] >= 0).sum()), len(rows))


def agreed_class(rows_ND: npt.NDArray[np.float32], means_CD: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """The class (N,) each row agrees with clearly, -1 for none.

    Cosines with the class means, all less the mean of those; the best is to be further from the second than the
    cosines with all but the best are spread (their standard deviation).
    """
    centre_D = means_CD.mean(axis=0)
    cosines_NC = _unit(rows_ND - centre_D) @ _unit(means_CD - centre_D).T
    ordered_NC = np.sort(cosines_NC, axis=1)
    is_clear = ordered_NC[:, -1] - ordered_NC[:, -2] > ordered_NC[:, :-1].std(axis=1)
    return np.where(is_clear, cosines_NC.argmax(axis=1), -1)


def _unit(rows_ND: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    units_ND: npt.NDArray[np.float32] = rows_ND / np.maximum(np.linalg.norm(rows_ND, axis=1, keepdims=True), 1e-12)
    return units_ND
