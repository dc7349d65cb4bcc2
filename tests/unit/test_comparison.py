"""Two runs on the same test rows: pairing by id, what is left out, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from uml_core.config import parse_experiment
from uml_core.errors import InputError
from uml_core.evaluation.comparison import compare
from uml_core.evaluation.run import EvaluatedRun
from uml_core.evaluation.statistics import mcnemar

EXPERIMENT = parse_experiment(
    {
        "name": "x",
        "store": "s",
        "target": "target",
        "corpora": {"target": {"modality": "vector", "format": "embeddings", "path": "p"}},
    }
)


def run_of(hits: Sequence[bool], ids: Sequence[str], classes: tuple[str, ...] = ("a", "b")) -> EvaluatedRun:
    """A run that gets some rows of class "a" right."""
    features = np.array([[1.0, 0.0] if hit else [0.0, 1.0] for hit in hits], dtype=np.float32)
    rows = SimpleNamespace(
        rows=np.arange(len(hits)), labels=np.zeros(len(hits), np.int64), corpus="", features=features
    )
    data = SimpleNamespace(classes=classes, target="target", labelled=rows, val=rows, test=rows, shifted={})
    objective: Any = SimpleNamespace(
        features=lambda corpus, rows: rows.features, classifier=lambda: lambda features: features.astype(np.float64)
    )
    return EvaluatedRun(EXPERIMENT, data, objective, ids=lambda corpus: tuple(ids))


def test_rows_are_paired_by_id_and_others_left_out() -> None:
    mine = run_of([True, True, False, True], ["1", "2", "3", "4"])
    other = run_of([True, False, False, True], ["9", "4", "3", "1"])  # shares 1 (right), 3 (wrong), 4 (wrong)
    found = compare([mine], [other])
    assert (found.rows, found.left_out) == (3, 2)
    assert (found.accuracy, found.other_accuracy) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert (found.wins, found.losses) == (1, 0)
    assert found.mcnemar_p == mcnemar(1, 0)
    assert found.metrics("against/x")["against/x/difference"] == pytest.approx(1 / 3)
    assert "seeds" not in " ".join(found.metrics("x"))
    assert "2 test rows" in found.lines()[-1]


def test_a_run_against_itself_differs_by_nothing() -> None:
    mine = run_of([True, False, True], "123")
    found = compare([mine], [mine])
    assert (found.bootstrap.low, found.bootstrap.mean, found.bootstrap.high) == (0, 0, 0)
    assert found.mcnemar_p == 1


def test_pairs_over_seeds() -> None:
    rng = np.random.default_rng(0)
    ids = [str(row) for row in range(50)]
    mine = [run_of(list(rng.random(50) < 0.8), ids) for _ in range(4)]
    others = [run_of(list(rng.random(50) < 0.4), ids) for _ in range(4)]
    found = compare(mine, others)
    assert found.seeds is not None
    assert found.seeds.count == 4
    assert found.seeds.mean == pytest.approx(found.bootstrap.mean)
    assert found.bootstrap.low > 0
    assert found.sign_flip_p == pytest.approx(2 / 16)
    assert np.isnan(found.mcnemar_p)
    assert {"against/sign_flip_p", "against/seeds_low"} <= set(found.metrics("against"))
    assert "it cannot be below 0.125" in found.lines()[1]


def test_what_cannot_be_compared() -> None:
    mine = run_of([True], ["1"])
    with pytest.raises(InputError, match="differ in target or classes"):
        compare([mine], [run_of([True], ["1"], ("a", "c"))])
    with pytest.raises(InputError, match="share no test row"):
        compare([mine], [run_of([True], ["2"])])
