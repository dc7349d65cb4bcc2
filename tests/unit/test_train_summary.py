"""What a training run's last lines say of it and its twin."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.train import _summary
from tests.unit.test_training import experiment
from uml_core.results import RunOutcome


def outcome(target_samples: int) -> RunOutcome:
    """A finished run in which nothing matters but how many target samples it saw."""
    numbers: dict[str, Any] = dict.fromkeys(RunOutcome.__dataclass_fields__, 1)
    return RunOutcome(**{**numbers, "run_id": "x", "target_samples": target_samples, "test_accuracy": 0.5})


@pytest.mark.parametrize(("twin", "is_matched"), [(960, True), (800, False)])
def test_it_says_where_the_twin_saw_other_numbers_of_target_samples(twin: int, is_matched: bool) -> None:
    stored: Any = SimpleNamespace(feeds={})
    text = _summary(experiment(), stored, outcome(960), outcome(twin)).text
    assert ("not matched: the two saw 960 and 800 target samples" in text) is not is_matched
    assert "difference on test: +0.0 points" in text
