"""Which corpora are counted, and the table of what was counted; heads of such corpora: tests/ray/test_row_sums.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import table, vector_tree
from uml_core.config import parse_experiment
from uml_core.data.counted_rows import is_counted
from uml_core.data.row_statistics import KEPT_ROWS
from uml_core.data.subsets import Subset
from uml_core.data.target_rows import classes_in, count_by_class
from uml_core.store.counted_table import with_counted

ROWS = {"train": {"cat": KEPT_ROWS, "dog": 1, "": 5}, "val": {"cat": 2}, "test": {"dog": 2}}


@pytest.mark.parametrize(
    ("changes", "rows", "expected"),
    [
        ({}, {}, True),
        ({"model.head": "paper"}, {}, False),
        ({"data.shots": 2}, {}, False),
        ({}, {"train": {"cat": KEPT_ROWS, "": 5}}, False),
        ({}, {"val": {}}, False),
        ({}, {"val": {"": 3, "bird": 2}}, False),
        ({}, {"test": {}}, True),
        ({"data.test_fraction": 0.1}, {}, True),
        ({"data.labels.map": {"cat": "dog"}}, {}, False),
        ({"data.test_fraction": 0.1}, {"test": {}}, False),
    ],
)
def test_a_target_is_counted_where_nothing_of_split_train_is_drawn(
    tmp_path: Path, changes: dict[str, Any], rows: dict[str, Any], expected: bool
) -> None:
    experiment = parse_experiment(vector_tree(tmp_path)).override({"model.head": "prior", **changes})
    assert is_counted(experiment, "target", {**ROWS, **rows}, None) == expected
    assert not is_counted(experiment, "target", {**ROWS, **rows}, Subset("s", {"train": ("a",)}, are_paths=False))


def test_what_was_counted_is_a_row_for_each_class() -> None:
    read = table(np.zeros((3, 2)), ["dog", None, "bird"], ["val", "test", "val"])
    counted = with_counted(read, {"train": {"cat": 7, "": 2, "dog": 1}})
    assert counted.label_names == ("bird", "cat", "dog")
    assert [counted.split_names[code] for code in counted.split_codes] == ["val", "test", "val", *["train"] * 3]
    assert classes_in(counted) == {"cat", "dog"}
    assert count_by_class(counted, np.arange(6)) == {"bird": 1, "dog": 2, "cat": 7, "": 3}
