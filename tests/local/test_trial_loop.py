"""Trials in one process of a sweep: each has its result and its weights, whatever happens to the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ray.train import ControllerError

from pipelines.ray_train.checkpoints import ReportPace
from pipelines.ray_train.faults import MistakeCallback
from pipelines.tune import trial_on_workers as trial_workers
from pipelines.tune.encoder_trial import TrialCheckpoints, run_encoder_trial
from pipelines.tune.folder import Assignment, SweepFolder, TrialResult, trial_config
from pipelines.tune.trial import run_trials
from tests.unit.test_training import TABLES, experiment
from uml_core.config import Experiment
from uml_core.errors import InputError
from uml_core.gradients.ranks import RankContext

Ended = dict[int, tuple[TrialResult, dict[str, Any] | None]]


def ended(experiments: list[Experiment]) -> Ended:
    results: Ended = {}

    def keep(index: int, result: TrialResult, state: dict[str, Any] | None) -> None:
        assert index not in results, "a trial ends once"
        results[index] = result, state

    run_trials(experiments, TABLES, on_end=keep)
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
        names = [(point["name"], point["step"]) for point in result.points]
        assert names == [(point["name"], point["step"]) for point in alone.points]
    assert "not finite" in together[1][0].error


def test_a_trial_without_data_fails_alone() -> None:
    good = experiment()
    lacking = replace(TABLES["names"], label_names=("other",), label_codes=TABLES["names"].label_codes * 0)
    results: Ended = {}
    run_trials(
        [good.override({"seed": 1}), good],
        {**TABLES, "names": lacking},
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


def test_a_rank_of_several_raises_what_it_may_have_found_alone(tmp_path: Path) -> None:
    tables = {**TABLES, "names": replace(TABLES["names"], label_names=("other",), label_codes=np.zeros(48, np.int64))}
    settings, checkpoints = experiment(), TrialCheckpoints(SweepFolder(str(tmp_path)), "key", ReportPace(10, 0.01))
    result, _ = run_encoder_trial(settings, tables, checkpoints, place=RankContext.cpu())
    assert "shares no class" in result.error
    with pytest.raises(InputError, match="shares no class"):
        run_encoder_trial(settings, tables, checkpoints, place=RankContext(torch.device("cpu"), 0, 2))


def test_a_mistake_that_ends_a_trials_workers_is_its_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Trainer:
        def __init__(self, *_: Any, run_config: Any, **__: Any) -> None:
            self.callbacks = run_config.callbacks

        def fit(self) -> None:
            assert any(isinstance(each, MistakeCallback) for each in self.callbacks)
            raise ControllerError(InputError("a.png cannot be read"))

    reported: list[dict[str, float]] = []
    monkeypatch.setattr(trial_workers, "TorchTrainer", Trainer)
    monkeypatch.setattr(trial_workers, "tune", SimpleNamespace(report=reported.append))
    config = trial_config([Assignment("key", ("uml", "", 0), {"seed": 3})])
    folder = SweepFolder(str(tmp_path / "trials"))
    trial_workers.train_on_workers(config, experiment=experiment(), fingerprints={}, folder_uri=folder.uri)
    result = folder.read("key")
    assert result is not None
    assert (result.error, result.overrides, result.group) == ("a.png cannot be read", {"seed": 3}, ("uml", "", 0))
    assert len(reported) == 1
