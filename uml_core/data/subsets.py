"""Splits and few-shot subsets, drawn or named by a file: stratified, seeded, nested (4 shots contain the 2 shots).

Two formats of files are read: our own, which `train` and `tune` log as artifacts, and the published index files of
cross_modal_adaptation (indices/DATASET/shot_K-seed_S.json), whose rows are paths: a row is the one whose id ends in the
longest part of the path. Where all rows of split train are trained on and were added up, ours has their number in place
of the ids: {class: rows}.

Shape legend: N rows.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, TypeAdapter

from uml_core.errors import InputError, listing, nearest
from uml_core.files.paths import STORAGE_ERRORS, one_line, open_bytes

Rows = npt.NDArray[np.int64]
FORMAT = "uml-subset-1"
SPLITS = ("train", "val", "test")
LAYOUT = (
    f'expected a subset.json of ours ({{"format": "{FORMAT}", "train": {{class: [id]}}, "val": ...}}; for all rows of '
    'split train, "train": {class: number of rows}), or an index '
    'file of cross_modal_adaptation ({"train": {"data": [{"impath": ...}]}, "val": ...})'
)


def rows_by_class(labels: npt.NDArray[np.int64], rows: Rows, *, seed: int) -> dict[int, Rows]:
    """Each class's rows in an order drawn by the seed and the class, whatever number of them is then used.

    Args:
        labels: class codes (N,); `rows` index into them.
        rows: the rows to group.
        seed: draws the order, separately for each class.
    """
    return {
        int(code): np.random.default_rng([seed % 2**32, int(code)]).permutation(np.sort(rows[labels[rows] == code]))
        for code in np.unique(labels[rows])
    }


def take_shots(labels: npt.NDArray[np.int64], rows: Rows, *, shots: int, seed: int) -> Rows:
    """At most `shots` rows of every class; a larger `shots` gives a superset."""
    drawn = [order[:shots] for order in rows_by_class(labels, rows, seed=seed).values()]
    return np.sort(np.concatenate(drawn)) if drawn else rows[:0]


def split_off(labels: npt.NDArray[np.int64], rows: Rows, *, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Split rows into (kept, split off): about `fraction` of every class goes, and every class keeps at least one.

    A class with two rows or more gives at least one row when `fraction` is above 0.
    """
    kept, gone = [rows[:0]], [rows[:0]]
    for order in rows_by_class(labels, rows, seed=seed).values():
        count = min(len(order) - 1, max(1, round(len(order) * fraction))) if fraction > 0 else 0
        # From the end of the order: few-shot subsets are drawn from its front, and stay as they are.
        kept.append(order[: len(order) - count])
        gone.append(order[len(order) - count :])
    return np.sort(np.concatenate(kept)), np.sort(np.concatenate(gone))


@dataclass(frozen=True)
class Subset:
    """The rows of each split that a file names: ids, or paths whose ends are ids."""

    path: str
    rows: Mapping[str, tuple[str, ...]]
    are_paths: bool
    counts: Mapping[str, int] | None = None  # of each class, where all rows of split train are trained on

    def check_counts(self, found: Mapping[str, int]) -> None:
        """Raise InputError where split train of the store, counted by class ("" for none), is not what was counted."""
        labelled = {name: count for name, count in found.items() if name}
        if self.counts not in (None, labelled):
            raise InputError(
                f"data.subset is {self.path}, which takes all rows of split train, {_counted(self.counts)}, and the "
                f"store has {_counted(labelled)}; embed the corpus that the file is of, or name rows by their ids"
            )

    def table_rows(self, ids: Sequence[str]) -> dict[str, Rows]:
        """Find the table rows of each split.

        Args:
            ids: of the target's table, in its order.

        Raises:
            InputError: a row is not in the table, fits several, or is named twice.
        """
        find = _find_by_path(ids) if self.are_paths else {row_id: row for row, row_id in enumerate(ids)}.get
        found: dict[str, Rows] = {}
        for split, names in self.rows.items():
            rows = [find(name) for name in names]
            missing = [name for name, row in zip(names, rows, strict=True) if row is None]
            if missing:
                raise InputError(
                    f"data.subset is {self.path}, and {len(missing)} of its {len(names)} rows of {split} are not in "
                    f"the store, first '{missing[0]}'{nearest(missing[0], list(ids)[:1000])}; ids look like '{ids[0]}'"
                )
            found[split] = np.sort(np.array(rows, dtype=np.int64))
        every = np.concatenate([np.empty(0, dtype=np.int64), *found.values()])
        if len(np.unique(every)) < len(every):
            twice = ids[int(np.sort(every)[:-1][np.diff(np.sort(every)) == 0][0])]
            raise InputError(f"data.subset is {self.path}, which names row '{twice}' twice; a row is in one split")
        return found


def _counted(by_class: Mapping[str, int]) -> str:
    return f"{sum(by_class.values())} of {listing(f'{name} ({count})' for name, count in by_class.items())}"


def _find_by_path(ids: Sequence[str]) -> Callable[[str], int | None]:
    """A function that finds the id that shares the most trailing parts with a path; None where none or several do."""
    parts = [PurePosixPath(row_id).parts for row_id in ids]
    by_name: dict[str, list[int]] = defaultdict(list)
    for row, own in enumerate(parts):
        by_name[own[-1] if own else ""].append(row)

    def find(path: str) -> int | None:
        given = PurePosixPath(path.replace("\\", "/")).parts
        shared = {row: _shared_end(parts[row], given) for row in by_name.get(given[-1] if given else "", [])}
        best = [row for row, length in shared.items() if length == max(shared.values())]
        return best[0] if len(best) == 1 else None

    return find


def _shared_end(one: Sequence[str], other: Sequence[str]) -> int:
    """How many parts two paths share in turn from the end, whatever lies between them (train/, images/)."""
    length, end = 0, len(other)
    for part in reversed(one):
        earlier = [index for index in range(end) if other[index] == part]
        if earlier:
            length, end = length + 1, earlier[-1]
    return length


def read_subset(path: str) -> Subset:
    """Read a subset file. Raises InputError where it cannot be read or is of neither format."""
    try:
        with open_bytes(path) as file:
            tree = json.loads(file.read())
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise InputError(f"data.subset is {path}, which is no JSON; {LAYOUT}") from None
    except STORAGE_ERRORS as error:
        raise InputError(f"data.subset is {path}, which cannot be read: {one_line(error)}") from None
    ours = isinstance(tree, dict) and tree.get("format") == FORMAT
    try:
        given = {split: tree[split] for split in SPLITS if tree.get(split) is not None}
        counts = _counts(given["train"]) if ours else None
        if counts is not None:
            del given["train"]
        rows = {split: _ids(each) if ours else _paths(each) for split, each in given.items()}
    except (ValueError, KeyError, AttributeError):
        raise InputError(f"data.subset is {path}; {LAYOUT}") from None
    rows = {split: names for split, names in rows.items() if names or split == "train"}
    return Subset(path, rows, are_paths=not ours, counts=counts)


def subset_text(classes: Sequence[str], splits: Mapping[str, tuple[Sequence[str], Sequence[int]]], **facts: Any) -> str:
    """Write a subset file's text.

    Args:
        classes: the target's.
        splits: ids and class codes of each split.
        **facts: what else is written down: for a person target, shots, seed; the number of train rows that were
            counted, by class.
    """
    tree: dict[str, Any] = {"format": FORMAT, **facts}
    for split, (ids, codes) in splits.items():
        by_class: dict[str, list[str]] = {}
        for row_id, code in zip(ids, codes, strict=True):
            by_class.setdefault(classes[code], []).append(row_id)
        tree[split] = {name: by_class[name] for name in classes if name in by_class}
    return json.dumps(tree, indent=1, ensure_ascii=False)


class _Item(BaseModel):
    impath: str


def _ids(by_class: Any) -> tuple[str, ...]:
    return tuple(itertools.chain.from_iterable(TypeAdapter(dict[str, list[str]]).validate_python(by_class).values()))


def _counts(by_class: Any) -> dict[str, int] | None:
    """How many rows each class has, where the file says that and not which."""
    is_counted = bool(by_class) and all(type(count) is int for count in by_class.values())
    return dict(by_class) if is_counted else None


def _paths(split: Any) -> tuple[str, ...]:
    items = split["data"] if isinstance(split, dict) else split
    return tuple(item.impath for item in TypeAdapter(list[_Item]).validate_python(items))
