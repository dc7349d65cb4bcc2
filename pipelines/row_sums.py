"""One pass over the store for a head that is solved (Ray Data): what it asks of corpora that do not fit in memory.

In: an experiment, and which rows it trains on. Out: for each such corpus a file of `RowStatistics` beside its parts.

A task adds up a group of parts, some thousands of rows in memory at a time, and writes the sums in one rename: a killed
pass, run again, reads the groups that are missing. The driver then adds the groups up in their order, so that the same
rows give the same numbers on any number of machines. Of rows that are all taken it holds nothing: tasks read their
labels. Where some are drawn it holds which (4 bytes a row, and while that is found their ids).
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.progress import StepProgress
from pipelines.ray_session import num_cpus, quieten_ray_data
from pipelines.run_data import CheckedData
from uml_core.config import Experiment, hash_of
from uml_core.data.labelled_rows import LabelledRows
from uml_core.data.row_statistics import KEPT_ROWS, Block, RowStatistics, rows_at_once
from uml_core.data.training_data import TrainingData
from uml_core.errors import InputError
from uml_core.models.closed_form.row_space import have_equal_lengths
from uml_core.models.closed_form.summing import Summing, check_solvable
from uml_core.store.corpus_store import CorpusStore
from uml_core.store.corpus_table import CorpusTable, finite_matrix
from uml_core.store.lots import lots_of
from uml_core.store.sums_folder import TOTAL, SumsFolder

GROUP_ROWS = 65_536  # added up by one task: its sums are then a few hundredths of what it reads

logger = logging.getLogger(__name__)
Codes = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Group:
    """Parts that one task adds up, and which of their rows, in the order in which they are stored."""

    file: str
    dim: int
    parts: tuple[str, ...]
    lengths: tuple[int, ...]  # rows of each part
    labels: Codes | None  # (N,) class codes, -1 for rows that are not used; None: by the rows' own labels

    def __len__(self) -> int:
        return sum(self.lengths)


@dataclass(frozen=True)
class Pass:
    """What is added up of a corpus: its labelled rows, or all rows of split train of some classes."""

    rows: LabelledRows
    summing: Summing
    classes: Mapping[str, int] | None  # code of each class, where all are taken


def add_up_rows(experiment: Experiment, checked: CheckedData) -> dict[str, str]:
    """Add up the streamed corpora that a solved head asks for; returns the key of each one's `SumsFolder`.

    Left out are a target of few rows, which are read as they are, and corpora whose rows are replaced by others (noise,
    class means) or get labels by agreement, for which all are read.

    Raises:
        InputError: the head takes all rows at once, or the store holds NaN.
    """
    streamed = {corpus for corpus, feed in checked.feeds.items() if feed == "stream"}
    check_solvable(experiment, streamed)
    if not experiment.solved_from:
        return {}
    assert isinstance(checked.data, TrainingData), "other data are refused with the experiment"
    train, keys = checked.data.train, {}
    for corpus in experiment.solved_from:
        is_few = corpus == experiment.target and train[corpus].total <= KEPT_ROWS
        averaged = experiment.data.auxiliary_shots.get(corpus) == "average"
        is_replaced = averaged or experiment.corpora[corpus].control == "noise" or corpus in experiment.agreeing
        if corpus not in streamed or is_few or is_replaced:
            continue
        store = CorpusStore(experiment.store, corpus, checked.fingerprints[corpus])
        table = checked.tables[corpus]
        assert isinstance(table, CorpusTable), "other data are refused with the experiment"
        keys[corpus] = _key_of_sums(experiment, checked.data, store, _codes_by_name(table, train[corpus]))
    return keys


def _codes_by_name(table: CorpusTable, rows: LabelledRows) -> dict[str, int] | None:
    """The class code of each label, of rows that were counted: there is one for each label."""
    if rows.counts is None:
        return None
    names = (table.label_names[code] for code in table.label_codes[rows.rows])
    return dict(zip(names, rows.labels.tolist(), strict=True))


def _key_of_sums(
    experiment: Experiment, data: TrainingData, store: CorpusStore, classes: Mapping[str, int] | None
) -> str:
    """Add up a corpus, the target's rows at unit length where those that are kept say so, which is guessed first."""
    rows = data.train[store.corpus]

    def add_up(*, is_unit: bool) -> str:
        return _add_up(store, Pass(rows, Summing.of_corpus(data, store.corpus, is_unit=is_unit), classes))

    if store.corpus != data.target or experiment.model.normalize:
        return add_up(is_unit=True)
    column = store.read_part(store.embeddings_manifest()["parts"][0], ["embedding"])["embedding"]
    guess = have_equal_lengths(finite_matrix(column, rows.dim, store.directory))
    key = add_up(is_unit=guess)
    kept = RowStatistics.from_bytes(SumsFolder((store.uri, store.corpus, store.fingerprint), key).read(TOTAL)).kept
    if have_equal_lengths(kept) == guess:
        return key
    return add_up(is_unit=not guess)


def _add_up(store: CorpusStore, what: Pass) -> str:
    manifest = store.embeddings_manifest()
    used: Any = what.classes
    if what.classes is None:
        used = hashlib.blake2b(what.rows.rows.tobytes() + what.rows.labels.tobytes(), digest_size=16).hexdigest()
    settings = [*asdict(what.summing).values(), KEPT_ROWS, GROUP_ROWS, "kept by lots"]
    key = hash_of([manifest["parts"], manifest["rows_digest"], used, settings])
    folder = SumsFolder((store.uri, store.corpus, store.fingerprint), key)
    if TOTAL in folder.names():
        return key
    with folder.writing(lambda: logger.warning("%s: another process adds up its rows; waiting", store.corpus)):
        if TOTAL not in folder.names():
            groups = list(_groups(store, manifest, what))
            _add_missing(folder, groups, what)
            read = (RowStatistics.from_bytes(folder.read(group.file)) for group in groups)
            folder.write(TOTAL, functools.reduce(RowStatistics.plus, read).to_bytes())
            folder.keep_only(TOTAL)
    return key


def _groups(store: CorpusStore, manifest: Mapping[str, Any], what: Pass) -> Iterator[Group]:
    """Yield neighbouring parts of about `GROUP_ROWS` rows together; not those of which none is known to be used."""
    lengths = store.part_lengths(manifest["parts"])
    labels_N = _stored_labels(store, manifest, what.rows) if what.classes is None else None
    for number, (own, picked) in enumerate(_neighbours(lengths, GROUP_ROWS)):
        labels = None if labels_N is None else labels_N[picked]
        if labels is None or (labels >= 0).any():
            file, dim = f"group-{number:06d}.npz", int(manifest["dim"])
            yield Group(file, dim, tuple(manifest["parts"][own]), tuple(lengths[own]), labels)


def _stored_labels(store: CorpusStore, manifest: Mapping[str, Any], rows: LabelledRows) -> Codes:
    """The class code of each stored row (N,), -1 for those that are not used."""
    positions_N = store.row_positions(manifest)
    labels_N = np.full(len(positions_N), -1, dtype=np.int32)
    labels_N[rows.rows] = rows.labels
    return labels_N[positions_N]


def _neighbours(lengths: Sequence[int], num_rows: int) -> Iterator[tuple[slice, slice]]:
    """Yield runs of parts of about so many rows: which parts, and which rows."""
    starts = list(itertools.accumulate(lengths, initial=0))
    for _, members in itertools.groupby(range(len(lengths)), key=lambda part: starts[part] // num_rows):
        parts = list(members)
        yield slice(parts[0], parts[-1] + 1), slice(starts[parts[0]], starts[parts[-1] + 1])


def _add_missing(folder: SumsFolder, groups: Sequence[Group], what: Pass) -> None:
    """Add up the groups of which there is no file yet."""
    import ray.data  # it takes a second, and few runs need it

    done = folder.names()
    missing = [group for group in groups if group.file not in done]
    if not missing:
        return
    quieten_ray_data()
    items = [{"group": pickle.dumps(group)} for group in missing]  # which Arrow holds as bytes
    results = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        add_group,
        batch_size=1,
        compute=ray.data.TaskPoolStrategy(size=min(num_cpus(), len(missing))),
        fn_kwargs={"folder": folder, "summing": what.summing, "classes": what.classes},
    )
    total, name = sum(map(len, groups)), folder.store[1]
    before = total - sum(map(len, missing))
    with StepProgress(f"adding up {name}") as shown:
        shown.counts(f"adding up {name}", total)
        shown.adds(before)
        mistakes = []
        for result in results.iter_rows():
            shown.adds(int(result["rows"]))
            mistakes += [result["mistake"]] if result["mistake"] else []
    if mistakes:  # the other groups are there, for when it is mended
        raise InputError(mistakes[0])


def add_group(
    batch: dict[str, np.ndarray], folder: SumsFolder, summing: Summing, classes: Mapping[str, int] | None
) -> dict[str, np.ndarray]:
    """Add up one group in a task, and write its sums (a Ray Data batch of one row); returns what the user did wrong."""
    group: Group = pickle.loads(batch["group"][0])
    mistake = ""
    try:
        blocks = _blocks(folder.corpus_store, group, summing, classes or {})
        folder.write(group.file, summing.add_up(blocks).to_bytes())
    except InputError as error:  # raised here, it would end the pass with a traceback of Ray's
        mistake = str(error)
    return {"rows": np.array([len(group)]), "mistake": np.array([mistake])}


def _blocks(store: CorpusStore, group: Group, summing: Summing, classes: Mapping[str, int]) -> Iterator[Block]:
    """Yield the used rows of a group's parts, some parts at a time."""
    step = rows_at_once(group.dim)
    for parts, rows in _neighbours(group.lengths, step):
        table = store.read_columns({"parts": group.parts[parts]}, ["id", "label", "split", "embedding"])
        rows_ND = finite_matrix(table["embedding"], group.dim, store.directory)
        labels_N = _train_codes(table, classes) if group.labels is None else group.labels[rows]
        places_N = summing.places(lots_of(table["id"]))
        for first in range(0, len(table), step):
            picked = slice(first, first + step)
            used = labels_N[picked] >= 0
            yield Block(rows_ND[picked][used], labels_N[picked][used].astype(np.int64), places_N[picked][used])


def _train_codes(table: pa.Table, classes: Mapping[str, int]) -> Codes:
    """The class code of each row of split train (N,), -1 for others."""
    found = pc.fill_null(pc.index_in(table["label"], value_set=pa.array(list(classes), pa.string())), -1).to_numpy()
    is_train = pc.fill_null(pc.equal(table["split"], "train"), False).to_numpy()
    return np.where(is_train, np.array([*classes.values(), -1], dtype=np.int32)[found], -1)
