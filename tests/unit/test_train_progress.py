"""The line that a training run's bar says."""

from __future__ import annotations

import pytest

from pipelines.train.bar import StepRate, TrainingState


def test_rate_time_left_losses_and_accuracy() -> None:
    state = TrainingState(step=300, steps_per_s=20.0, losses={"photos": 1.2345, "names": 0.5}, val_accuracy=0.875)
    assert state.describe(1000) == "20 steps/s, 0:00:35 left, loss photos 1.23, names 0.5, val 87.5 %"
    untrained = TrainingState(step=0, steps_per_s=0.0, losses={}, val_accuracy=0.1)
    assert untrained.describe(0) == "0 steps/s, 0:00:00 left, val 10.0 %"


def test_the_rate_counts_what_passes_between_steps_and_only_the_steps_of_this_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 50.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    rate = StepRate(first_step=100)
    assert rate.at(100) == 0
    now = 60.0  # trained, evaluated and reported in ten seconds
    assert rate.at(300) == 20
    assert "0:00:35 left" in TrainingState(300, rate.at(300), {}, 0.5).describe(1000)
