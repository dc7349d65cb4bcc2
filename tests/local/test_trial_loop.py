"""Trials in one process of a sweep: each has its result and its weights, whatever happens to the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipelines import run_data
from pipelines.run_data import SharedData
from pipelines.tune.folder import TrialResult
from pipelines.tune.trial import train_heads
from tests.unit.test_training import TABLES, experiment
from uml_core.config import Experiment
from uml_core.models.closed_form import solved_head

Ended = dict[int, tuple[TrialResult, dict[str, Any] | None]]


def ended(experiments: list[Experiment]) -> Ended:
    results: Ended = {}

    def keep(index: int, result: TrialResult, state: dict[str, Any] | None) -> None:
        assert index not in results, "a trial ends once"
        results[index] = result, state

    train_heads(experiments, SharedData(TABLES), on_end=keep)
    return results


def test_every_trial_of_a_pack_ends_as_it_does_alone() -> None:
    changes: list[dict[str, Any]] = [
        {"optim.lr": 1e-2},
        {"optim.lr": 1e30, "optim.warmup_steps": 0},
        {"optim.lr": 1e-2, "seed": 1, "data.split_seed": 1},
        {"optim.lr": 1e-3, "corpora.names.control": "noise"},
    ]
    experiments = [experiment(**change) for change in changes]
    together = ended(experiments)
    assert set(together) == set(range(len(changes)))
    for index, (result, state) in together.items():
        alone, alone_state = ended([experiments[index]])[0]
        assert result.error == alone.error
        assert (state is None) == (alone_state is None) == bool(result.error)
        assert (result.val_accuracy, result.cost, result.val_rows) == (alone.val_accuracy, alone.cost, alone.val_rows)
        names = [(point.name, point.step) for point in result.points]
        assert names == [(point.name, point.step) for point in alone.points]
    assert "not finite" in together[1][0].error


def test_a_trial_without_data_fails_alone() -> None:
    good = experiment()
    lacking = replace(TABLES["names"], label_names=("other",), label_codes=TABLES["names"].label_codes * 0)
    results: Ended = {}
    train_heads(
        [good.override({"seed": 1}), good],
        SharedData({**TABLES, "names": lacking}),
        on_end=lambda index, *ending: results.__setitem__(index, ending),
    )
    assert {index: ending[1] for index, ending in results.items()} == {0: None, 1: None}
    assert all("shares no class" in ending[0].error for ending in results.values())


@pytest.mark.parametrize("steps", [0, 20])
def test_an_untrained_trial_has_a_result(steps: int) -> None:
    (result, state) = ended([experiment(**{"train.max_steps": steps})])[0]
    assert not result.error
    assert state is not None
    assert state["progress"]["step"] == steps


def test_heads_in_closed_form_share_their_rows_and_fail_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six heads of two seeds, in one process: rows are selected once a seed, and a fault of ours fails one of them."""
    heads = [
        experiment(**{"seed": seed, "data.split_seed": seed, "model.head": head})
        for seed in (0, 1)
        for head in ("ridge", "prior", "logistic")
    ]
    selected, solve, select = [], solved_head.solve_head, run_data.build_data

    def counted(*given: Any) -> Any:
        selected.append(given[0].seed)
        return select(*given)

    def failing(head: Experiment, data: Any) -> Any:
        if (head.seed, head.model.head) == (0, "prior"):
            raise np.linalg.LinAlgError("no convergence")
        return solve(head, data)

    monkeypatch.setattr(run_data, "build_data", counted)
    monkeypatch.setattr(solved_head, "solve_head", failing)
    results = ended(heads)
    assert selected == [0, 1]
    errors = {index: result.error for index, (result, _) in results.items() if result.error}
    assert errors == {1: "numpy.linalg.LinAlgError: no convergence"}
    assert len(results) == len(heads)
