"""The line that a training run's bar says."""

from __future__ import annotations

from pipelines.train_progress import TrainingState


def test_rate_time_left_losses_and_accuracy() -> None:
    state = TrainingState(step=300, steps_per_s=20.0, losses={"photos": 1.2345, "names": 0.5}, val_accuracy=0.875)
    assert state.describe(1000) == "20 steps/s, 0:00:35 left, loss photos 1.23, names 0.5, val 87.5 %"
    untrained = TrainingState(step=0, steps_per_s=0.0, losses={}, val_accuracy=0.1)
    assert untrained.describe(0) == "0 steps/s, 0:00:00 left, val 10.0 %"
