"""Few-shot subsets as files: which rows a run trained, validated and was tested on, written and read again.

In: ids by split and class. Out: row numbers of the target's table. Two formats are read: our own, which `train` and
`tune` log as artifacts, and the published index files of cross_modal_adaptation (indices/DATASET/shot_K-seed_S.json),
whose rows are paths: a row is the one whose id ends in the longest part of the path.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from uml_core.data.subsets import Rows
from uml_core.errors import InputError, nearest
from uml_core.files.places import PLACE_ERRORS, one_line, open_bytes

FORMAT = "uml-subset-1"
SPLITS = ("train", "val", "test")
LAYOUT = (
    f'expected a subset.json of ours ({{"format": "{FORMAT}", "train": {{class: [id]}}, "val": ...}}), or an index '
    'file of cross_modal_adaptation ({"train": {"data": [{"impath": ...}]}, "val": ...})'
)


@dataclass(frozen=True)
class Subset:
    """The rows of each split that a file names: ids, or paths whose ends are ids."""

    path: str
    rows: Mapping[str, tuple[str, ...]]
    are_paths: bool

    def places(self, ids: Sequence[str]) -> dict[str, Rows]:
        """Return the table rows of each split.

        Args:
            ids: of the target's table, in its order.

        Raises:
            InputError: a row is not in the table, fits several, or is named twice.
        """
        find = _PathEnds(ids).place if self.are_paths else {row_id: place for place, row_id in enumerate(ids)}.get
        found: dict[str, Rows] = {}
        for split, names in self.rows.items():
            places = [find(name) for name in names]
            missing = [name for name, place in zip(names, places, strict=True) if place is None]
            if missing:
                raise InputError(
                    f"data.subset is {self.path}, and {len(missing)} of its {len(names)} rows of {split} are not in "
                    f"the store, first '{missing[0]}'{nearest(missing[0], list(ids)[:1000])}; ids look like '{ids[0]}'"
                )
            found[split] = np.sort(np.array(places, dtype=np.int64))
        every = np.concatenate(list(found.values()))
        if len(np.unique(every)) < len(every):
            twice = ids[int(np.sort(every)[:-1][np.diff(np.sort(every)) == 0][0])]
            raise InputError(f"data.subset is {self.path}, which names row '{twice}' twice; a row is in one split")
        return found


class _PathEnds:
    """Finds the one id that shares the most trailing parts with a path."""

    def __init__(self, ids: Sequence[str]) -> None:
        self._parts = [PurePosixPath(row_id).parts for row_id in ids]
        self._by_name: dict[str, list[int]] = defaultdict(list)
        for place, parts in enumerate(self._parts):
            self._by_name[parts[-1] if parts else ""].append(place)

    def place(self, path: str) -> int | None:
        """Return the row of a path; None where no id has its file name, or several fit equally well."""
        given = PurePosixPath(path.replace("\\", "/")).parts
        candidates = self._by_name.get(given[-1] if given else "", [])
        shared = {place: _shared_end(self._parts[place], given) for place in candidates}
        best = [place for place, length in shared.items() if length == max(shared.values())]
        return best[0] if len(best) == 1 else None


def _shared_end(one: Sequence[str], other: Sequence[str]) -> int:
    """Return how many parts two paths share in turn from the end, whatever lies between them (train/, images/)."""
    length, place = 0, len(other)
    for part in reversed(one):
        earlier = [index for index in range(place) if other[index] == part]
        if earlier:
            length, place = length + 1, earlier[-1]
    return length


def read_subset(path: str) -> Subset:
    """Read a subset file. Raises InputError where it cannot be read or is of neither format."""
    try:
        with open_bytes(path) as file:
            tree = json.loads(file.read())
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise InputError(f"data.subset is {path}, which is no JSON; {LAYOUT}") from None
    except PLACE_ERRORS as error:
        raise InputError(f"data.subset is {path}, which cannot be read: {one_line(error)}") from None
    ours = isinstance(tree, dict) and tree.get("format") == FORMAT
    rows = {split: _ids(tree[split]) if ours else _paths(tree[split]) for split in SPLITS if _has(tree, split)}
    if "train" not in rows or any(names is None for names in rows.values()):
        raise InputError(f"data.subset is {path}; {LAYOUT}")
    return Subset(path, {split: names for split, names in rows.items() if names}, are_paths=not ours)


def subset_text(classes: Sequence[str], splits: Mapping[str, tuple[Sequence[str], Sequence[int]]], **facts: Any) -> str:
    """Return a subset file.

    Args:
        classes: the target's.
        splits: ids and class codes of each split.
        **facts: what else is written down, for a person: target, shots, seed.
    """
    tree: dict[str, Any] = {"format": FORMAT, **facts}
    for split, (ids, codes) in splits.items():
        by_class: dict[str, list[str]] = {}
        for row_id, code in zip(ids, codes, strict=True):
            by_class.setdefault(classes[code], []).append(row_id)
        tree[split] = {name: by_class[name] for name in classes if name in by_class}
    return json.dumps(tree, indent=1, ensure_ascii=False)


def _has(tree: Any, split: str) -> bool:
    return isinstance(tree, dict) and tree.get(split) is not None


def _ids(by_class: Any) -> tuple[str, ...] | None:
    if not isinstance(by_class, dict) or not all(isinstance(ids, list) for ids in by_class.values()):
        return None
    names = [row_id for ids in by_class.values() for row_id in ids]
    return tuple(names) if all(isinstance(name, str) for name in names) else None


def _paths(split: Any) -> tuple[str, ...] | None:
    items = split.get("data") if isinstance(split, dict) else split
    if not isinstance(items, list):
        return None
    named = [item["impath"] for item in items if isinstance(item, dict) and isinstance(item.get("impath"), str)]
    return tuple(named) if len(named) == len(items) else None
