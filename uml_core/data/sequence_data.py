"""From the store's token sequences to what a self-supervised run reads.

In: one `SequenceTable` a corpus. Out: `SequenceData`: sequences to train on, of every corpus, labelled or not; and the
target's labelled rows for the probes. Shots limit the labelled rows of the probe alone: the training needs no labels.
Unpaired is an invariant: ids stay in the store, and a batch holds tokens of each corpus, drawn by its own stream.

Shape legend: N sequences, R tokens of all sequences, D width of a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from uml_core.config import Experiment
from uml_core.data.label_names import with_labels
from uml_core.data.subsets import Rows
from uml_core.data.target_rows import target_rows
from uml_core.errors import InputError, listing
from uml_core.store.corpus_table import is_unread
from uml_core.store.sequence_table import SequenceTable

TOKENS_AT_ONCE = 2**16  # of a corpus, for its statistics


@dataclass(frozen=True)
class SequenceRows:
    """Some sequences of a table, each cut to `max_tokens`, with class codes (N,), -1 where there is none."""

    table: SequenceTable
    rows: Rows
    labels: npt.NDArray[np.int64]
    max_tokens: int
    corpus: str = ""  # of the table; "": the corpus it stands for
    counts: None = None  # as those of `LabelledRows`: every sequence is read

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def total(self) -> int:
        return len(self)

    @property
    def dim(self) -> int:
        return int(self.table.tokens.shape[1])

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """Where each sequence starts in the table's tokens (N,)."""
        return self.table.starts[self.rows]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each sequence (N,), after cutting."""
        return np.minimum(self.table.lengths[self.rows], self.max_tokens)

    def statistics(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Mean and standard deviation of every feature over the tokens of these sequences (D,), (D,).

        A feature that does not vary has standard deviation 1: it stays 0 once its mean is subtracted.
        """
        positions = token_positions(self.starts, self.lengths)
        # A block at a time, because a copy of all tokens in float64 would be large.
        blocks = np.array_split(positions, -(-len(positions) // TOKENS_AT_ONCE))
        total_D = sum(self.table.tokens[block].sum(axis=0, dtype=np.float64) for block in blocks)
        mean_D = total_D / len(positions)
        squares_D = sum(((self.table.tokens[block] - mean_D) ** 2).sum(axis=0) for block in blocks)
        deviation_D = np.sqrt(squares_D / len(positions))
        still = deviation_D <= 1e-6 * np.maximum(1.0, np.abs(mean_D))
        return mean_D.astype(np.float32), np.where(still, 1.0, deviation_D).astype(np.float32)

    def raw_features(self) -> npt.NDArray[np.float32]:
        """What needs no trunk: the mean token of each sequence (N, D); of discrete ones the shares (N, V)."""
        tokens, vocabulary = self.table.tokens, self.table.vocabulary
        width = vocabulary or self.dim
        means = np.empty((len(self), width), dtype=np.float32)
        for index, (start, length) in enumerate(zip(self.starts, self.lengths, strict=True)):
            own = tokens[start : start + length]
            if vocabulary is None:
                means[index] = own.mean(axis=0)
            else:
                means[index] = np.bincount(own[:, 0].astype(np.int64), minlength=width) / length
        return means


@dataclass(frozen=True)
class SequenceData:
    """Everything a self-supervised run reads; `train` and `test` go by the names `TrainingData` gives them."""

    classes: tuple[str, ...]
    target: str
    train: dict[str, SequenceRows]
    labelled: SequenceRows  # of the target's train split: what probes are fitted to
    val: SequenceRows
    test: SequenceRows | None
    shifted: dict[str, SequenceRows]

    def warnings(self) -> list[str]:
        """What the user should know: sequences that were cut."""
        lines = []
        for corpus, rows in self.train.items():
            num_cut = int((rows.table.lengths[rows.rows] > rows.max_tokens).sum())
            if num_cut:
                lines.append(
                    f"{corpus}: {num_cut} of {len(rows)} sequences are longer than sequence_model.max_tokens "
                    f"({rows.max_tokens}) and were cut"
                )
        return lines


def build_sequence_data(
    experiment: Experiment, tables: Mapping[str, SequenceTable], given: Mapping[str, Rows] | None = None
) -> SequenceData:
    """Select the sequences of an experiment from its tables; `given` are the rows data.subset names.

    Raises:
        InputError: the target's splits or labels do not serve a probe, a corpus has no train rows, or a control is set
            that needs labels.
    """
    tables = with_labels(experiment, tables)
    target, limit = tables[experiment.target], experiment.sequence_model.max_tokens
    found = target_rows(experiment, tables, given)

    def labelled(rows: Rows) -> SequenceRows:
        return SequenceRows(target, rows, found.labels[rows], limit)

    unseen = np.setdiff1d(_train_rows(experiment.target, target), found.held_out)
    train = {experiment.target: labelled(unseen)}
    for corpus in experiment.auxiliaries:
        table = _controlled(experiment, corpus, tables[corpus])
        rows = _train_rows(corpus, table)
        train[corpus] = SequenceRows(table, rows, np.full(len(rows), -1), limit)
    shifted = {
        name: SequenceRows(tables[part.corpus], part.rows, part.labels, limit, part.corpus)
        for name, part in found.shifted.items()
    }
    return SequenceData(
        classes=found.classes,
        target=experiment.target,
        train=train,
        labelled=labelled(found.splits["train"]),
        val=labelled(found.splits["val"]),
        test=labelled(found.splits["test"]) if len(found.splits["test"]) else None,
        shifted=shifted,
    )


def token_positions(starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where all tokens of some sequences lie (R,), one sequence after another."""
    before = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


def _train_rows(corpus: str, table: SequenceTable) -> Rows:
    if "train" not in table.split_names:
        raise InputError(f"corpora.{corpus} has no train rows (splits found: {listing(table.split_names)})")
    return np.flatnonzero(table.split_codes == table.split_names.index("train"))


def _controlled(experiment: Experiment, corpus: str, table: SequenceTable) -> SequenceTable:
    """An auxiliary corpus under its control: noise has the mean and deviation of every feature, and no order.

    For discrete tokens noise is the corpus's own tokens in an order drawn by lot.
    """
    control = experiment.corpora[corpus].control
    if control == "shuffled_labels":
        raise InputError(
            f"corpora.{corpus}.control is shuffled_labels, and objective self_supervised reads no auxiliary labels; "
            "use noise, or none"
        )
    # An unrelated corpus is as it is: no label links it to the target. What was not read cannot be replaced.
    if control != "noise" or is_unread(table.tokens):
        return table
    rng = np.random.default_rng([experiment.data.split_seed % 2**32, len(corpus), *corpus.encode()])
    if table.vocabulary is not None:
        return replace(table, tokens=rng.permutation(table.tokens))
    noise = rng.standard_normal(table.tokens.shape, dtype=np.float32)
    noise *= table.tokens.std(axis=0, keepdims=True)
    noise += table.tokens.mean(axis=0, keepdims=True)
    return replace(table, tokens=noise)
