"""One pass over the store for a head that is solved (Ray Data): what it asks of corpora that do not fit in memory.

In: an experiment, and which rows it trains on. Out: for each such corpus a file of `RowStatistics` beside its parts.

A task adds up a group of parts, some thousands of rows in memory at a time, and writes the sums in one rename: a killed
pass, run again, reads the groups that are missing. The driver then adds the groups up in their order, so that the same
rows give the same numbers on any number of machines. Of the rows themselves it holds labels alone.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
import pickle
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

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
from uml_core.store.corpus_table import finite_matrix
from uml_core.store.sums_folder import TOTAL, SumsFolder

GROUP_ROWS = 65_536  # added up by one task: its sums are then a few hundredths of what it reads

logger = logging.getLogger(__name__)
Codes = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Group:
    """Parts that one task adds up, with what is known of their rows in the order in which they are stored."""

    file: str
    dim: int
    parts: tuple[str, ...]
    lengths: tuple[int, ...]  # rows of each part
    labels: Codes  # (N,) class codes, -1 for rows that are not used
    places: Codes  # (N,) among the kept rows, -1 for others


def add_up_rows(experiment: Experiment, checked: CheckedData) -> dict[str, str]:
    """Add up the streamed corpora that a solved head asks for; returns the key of each one's `SumsFolder`.

    Left out are a target of few rows, which are read as they are, and corpora whose rows are replaced by others (noise,
    class means).

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
        is_few = corpus == experiment.target and len(train[corpus]) <= KEPT_ROWS
        averaged = experiment.data.auxiliary_shots.get(corpus) == "average"
        if corpus not in streamed or is_few or averaged or experiment.corpora[corpus].control == "noise":
            continue
        store = CorpusStore(experiment.store, corpus, checked.fingerprints[corpus])
        keys[corpus] = _key_of_sums(experiment, checked.data, store)
    return keys


def _key_of_sums(experiment: Experiment, data: TrainingData, store: CorpusStore) -> str:
    """Add up a corpus, the target's rows at unit length where those that are kept say so, which is guessed first."""
    rows = data.train[store.corpus]
    if store.corpus != data.target or experiment.model.normalize:
        return _add_up(store, rows, Summing.of_corpus(data, store.corpus, is_unit=True))
    column = store.read_part(store.embeddings_manifest()["parts"][0], ["embedding"])["embedding"]
    guess = have_equal_lengths(finite_matrix(column, rows.dim, store.directory))
    key = _add_up(store, rows, Summing.of_corpus(data, store.corpus, is_unit=guess))
    kept = RowStatistics.from_bytes(SumsFolder((store.uri, store.corpus, store.fingerprint), key).read(TOTAL)).kept
    if have_equal_lengths(kept) == guess:
        return key
    return _add_up(store, rows, Summing.of_corpus(data, store.corpus, is_unit=not guess))


def _add_up(store: CorpusStore, rows: LabelledRows, summing: Summing) -> str:
    manifest = store.embeddings_manifest()
    used = hashlib.blake2b(rows.rows.tobytes() + rows.labels.tobytes(), digest_size=16).hexdigest()
    settings = [*asdict(summing).values(), KEPT_ROWS, GROUP_ROWS]
    key = hash_of([manifest["parts"], manifest["rows_digest"], used, settings])
    folder = SumsFolder((store.uri, store.corpus, store.fingerprint), key)
    if TOTAL in folder.names():
        return key
    with folder.writing(lambda: logger.warning("%s: another process adds up its rows; waiting", store.corpus)):
        if TOTAL not in folder.names():
            groups = list(_groups(store, manifest, rows, summing))
            _add_missing(folder, groups, summing)
            read = (RowStatistics.from_bytes(folder.read(group.file)) for group in groups)
            folder.write(TOTAL, functools.reduce(RowStatistics.plus, read).to_bytes())
            folder.keep_only(TOTAL)
    return key


def _groups(store: CorpusStore, manifest: Mapping[str, Any], rows: LabelledRows, summing: Summing) -> Iterator[Group]:
    """Yield neighbouring parts of about `GROUP_ROWS` rows together; not those without a row that is used."""
    positions_N, lengths = store.row_positions(manifest), store.part_lengths(manifest["parts"])
    labels_N, places_N = (np.full(len(positions_N), -1, dtype=np.int32) for _ in range(2))
    labels_N[rows.rows], places_N[rows.rows] = rows.labels, summing.places(len(rows))
    labels_N, places_N = labels_N[positions_N], places_N[positions_N]
    for number, (own, picked) in enumerate(_neighbours(lengths, GROUP_ROWS)):
        if (labels_N[picked] >= 0).any():
            yield Group(
                f"group-{number:06d}.npz",
                int(manifest["dim"]),
                tuple(manifest["parts"][own]),
                tuple(lengths[own]),
                labels_N[picked],
                places_N[picked],
            )


def _neighbours(lengths: Sequence[int], num_rows: int) -> Iterator[tuple[slice, slice]]:
    """Yield runs of parts of about so many rows: which parts, and which rows."""
    starts = list(itertools.accumulate(lengths, initial=0))
    for _, members in itertools.groupby(range(len(lengths)), key=lambda part: starts[part] // num_rows):
        parts = list(members)
        yield slice(parts[0], parts[-1] + 1), slice(starts[parts[0]], starts[parts[-1] + 1])


def _add_missing(folder: SumsFolder, groups: Sequence[Group], summing: Summing) -> None:
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
        fn_kwargs={"folder": folder, "summing": summing},
    )
    total, name = sum(len(group.labels) for group in groups), folder.store[1]
    before = total - sum(len(group.labels) for group in missing)
    with tqdm(total=total, initial=before, desc=f"add up {name}", unit="row", delay=2, file=sys.stderr) as bar:
        mistakes = []
        for result in results.iter_rows():
            bar.update(int(result["rows"]))
            mistakes += [result["mistake"]] if result["mistake"] else []
    if mistakes:  # the other groups are there, for when it is mended
        raise InputError(mistakes[0])


def add_group(batch: dict[str, np.ndarray], folder: SumsFolder, summing: Summing) -> dict[str, np.ndarray]:
    """Add up one group in a task, and write its sums (a Ray Data batch of one row); returns what the user did wrong."""
    group: Group = pickle.loads(batch["group"][0])
    mistake = ""
    try:
        folder.write(group.file, summing.add_up(_blocks(folder.corpus_store, group)).to_bytes())
    except InputError as error:  # raised here, it would end the pass with a traceback of Ray's
        mistake = str(error)
    return {"rows": np.array([len(group.labels)]), "mistake": np.array([mistake])}


def _blocks(store: CorpusStore, group: Group) -> Iterator[Block]:
    """Yield the used rows of a group's parts, some parts at a time."""
    step = rows_at_once(group.dim)
    for parts, rows in _neighbours(group.lengths, step):
        column = store.read_columns({"parts": group.parts[parts]}, ["embedding"])["embedding"]
        rows_ND = finite_matrix(column, group.dim, store.directory)
        for first in range(rows.start, rows.stop, step):
            picked = slice(first, min(first + step, rows.stop))
            used = group.labels[picked] >= 0
            block_ND = rows_ND[first - rows.start : picked.stop - rows.start][used]
            labels_N, places_N = (codes[picked][used].astype(np.int64) for codes in (group.labels, group.places))
            yield Block(block_ND, labels_N, places_N)
