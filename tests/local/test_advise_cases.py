"""The calibration's cases: two views share no row, and what was measured is read back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from benchmarks.advise_cases import halved, scikit_learn_cases
from benchmarks.advise_gains import MeasuredCase, measure_gains, read_gains
from tests.conftest import table


def test_halves_share_neither_rows_nor_columns() -> None:
    values = np.arange(400, dtype=np.float32).reshape(100, 4)
    sides = halved(table(values, [*"ab"] * 50, ["train"] * 90 + ["test"] * 10), 1)
    target, auxiliary = sides["target"].embeddings, sides["auxiliary"].embeddings
    assert (target.shape[1], auxiliary.shape[1]) == (1, 3)
    assert not set(target.ravel()) & set(auxiliary.ravel())
    target_rows, auxiliary_rows = (set((side // 4).astype(int).ravel()) for side in (target, auxiliary))
    assert not target_rows & auxiliary_rows
    assert set(range(90, 100)) <= target_rows, "test rows are the target's"


def test_measured_gains_are_kept_and_read_back(tmp_path: Path) -> None:
    cases = list(scikit_learn_cases())
    assert len({case.name for case in cases}) == len(cases)
    file = tmp_path / "gains.jsonl"
    accuracy = {"unimodal": {0: 0.5, 1: 0.6}, "uml_init": {0: 0.6, 1: 0.7}, "uml": {0: 0.5, 1: 0.5}}
    file.write_text(json.dumps({"case": cases[0].name, "accuracy": accuracy}) + "\n", encoding="utf-8")
    assert read_gains(file) == {cases[0].name: accuracy}
    (measured,) = measure_gains(cases[:1], file, num_seeds=2)  # known: nothing is trained
    assert measured == MeasuredCase(cases[0], accuracy)
    assert abs(measured.gain().mean - 0.1) < 1e-12
