"""What `train` warns of before it starts: settings that the run does not use."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.unit.test_training import experiment
from uml_core.config.used_by import unused_settings

SOLVER = {"optim.name": "lbfgs", "model.learnable_scale": False}
FINETUNE = {
    "corpora.target": {"modality": "image", "format": "folder", "path": "pictures"},
    **{"model.backbone": "finetune", "optim.backbone_lr": 1e-3, "optim.layer_decay": 0.7, "pictures.augment": False},
}
SOUNDS = {
    "corpora.target": {"modality": "audio", "format": "folder", "path": "sounds"},
    "encoders.audio": {"source": "transformers", "name": "x"},
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        (FINETUNE, []),
        ({**FINETUNE, **SOUNDS}, ["pictures.augment"]),
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
        re.search(r"not used: it counts with .*(backbone|optim\.name|pictures).* alone; set that, or remove it$", e)
        for e in lines
    )


@pytest.mark.parametrize(
    ("head", "unused"),
    [("paper", ["corpora.other", "corpora.pile"]), ("ridge", ["corpora.other"]), ("prior", [])],
)
def test_roles_that_the_head_has_no_use_for_are_named(head: str, unused: list[str]) -> None:
    ready = {"modality": "vector", "format": "embeddings", "path": "x.parquet"}
    roles = {"other": "bridge", "pile": "unlabelled"}
    given = experiment(**{f"corpora.{name}": {**ready, "role": role} for name, role in roles.items()})
    lines = unused_settings(given.override({"model.head": head}))
    assert [line.split()[0] for line in lines if "has role" in line] == unused
