"""The line that a training run's bar says."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines import progress
from pipelines.train.bar import TrainingBar, TrainingState
from pipelines.train.progress import MLflowCallback, followed


def test_rate_time_left_losses_and_accuracy() -> None:
    state = TrainingState(step=300, steps_per_s=20.0, losses={"photos": 1.2345, "names": 0.5}, val_accuracy=0.875)
    assert state.describe(1000) == "20 steps/s, 0:00:35 left, loss photos 1.23, names 0.5, val 87.5 %"
    untrained = TrainingState(step=0, steps_per_s=0.0, losses={}, val_accuracy=0.1)
    assert untrained.describe(0) == "0 steps/s, 0:00:00 left, val 10.0 %"


def test_the_bar_draws_what_the_controller_wrote_and_says_each_warning_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "state.json"
    tracker = SimpleNamespace(MLflowTracker=lambda *_: SimpleNamespace(log_metrics=lambda points: None))
    callback = MLflowCallback(None, "run", file)
    bar = TrainingBar("train uml", 40)
    with pytest.MonkeyPatch.context() as patch, bar, followed(file, bar):
        patch.setitem(sys.modules, "uml_core.tracking.writing", tracker)
        patch.setattr(progress, "LOG_S", 0.0)
        for step in (10, 40):
            callback.after_report(None, [{"state": TrainingState(step, 2.0, {}, 0.5, ["a.txt: cut"])}, {}], None)
    assert "train uml 40/40 steps, 2 steps/s, 0:00:00 left, val 50.0 %" in capsys.readouterr().err
    assert caplog.messages == ["a.txt: cut"]
