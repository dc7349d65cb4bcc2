"""What a training run's last lines say of it and its twin, and what before it starts."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines import train
from pipelines.train import _summary
from tests.unit.test_training import experiment
from uml_core.config.unused import unused_settings
from uml_core.errors import InputError
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


SOLVER = {"optim.name": "lbfgs", "model.learnable_scale": False}
FINETUNE = {
    "corpora.target": {"modality": "image", "format": "folder", "path": "pictures"},
    **{"model.backbone": "finetune", "optim.backbone_lr": 1e-3, "optim.layer_decay": 0.7, "pictures.augment": False},
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        (FINETUNE, []),
        ({**FINETUNE, "model.backbone": "frozen"}, ["optim.backbone_lr", "optim.layer_decay", "pictures.augment"]),
        ({**FINETUNE, "model.backbone": "lora"}, ["optim.backbone_lr"]),
        ({**FINETUNE, "optim.lora_lr": 1e-3}, ["optim.lora_lr"]),
        ({**SOLVER, "optim.lr": 9, "optim.warmup_steps": 0}, ["optim.lr", "optim.warmup_steps", "train.batch_size"]),
    ],
)
def test_settings_that_are_not_used_are_named_with_what_would_use_them(
    changes: dict[str, Any], expected: list[str]
) -> None:
    lines = unused_settings(experiment(**changes))
    assert [line.split()[0] for line in lines] == expected
    assert all(
        re.search(r"and not used with (model\.backbone|optim\.name) .*; set .*, or remove it$", e) for e in lines
    )


def test_a_twin_that_would_be_the_run_itself_is_refused() -> None:
    alone = {"train.twin": True, "mixing.loss_weight.names": 0, "model.head_init": "random"}
    with pytest.raises(InputError, match=r"train.twin is true, and no auxiliary corpus takes part"):
        train.run(experiment(**alone))
