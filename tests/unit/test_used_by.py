"""The table of which key decides what: complete, and read by whoever needs to know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit import test_spaces, test_training
from uml_core.config import Experiment
from uml_core.config.__main__ import settings_reference
from uml_core.config.used_by import DECISIONS, USES, deciding, leaves
from uml_core.sweeps.space import trained_settings
from uml_core.training.packs import pack_label

FINETUNE = {"model_backbone": "finetune", "optim_layer_decay": 0.7}
SEQUENCES = {"objective": "self_supervised"}


def test_the_table_has_every_key_of_the_config_and_no_other() -> None:
    assert {leaf.pattern for leaf in leaves(Experiment)} == set(USES)
    assert {decision for use in USES.values() for decision in use.decides} == set(DECISIONS)


def test_what_decides_the_rows_decides_the_model() -> None:
    assert all("model" in use.decides for use in USES.values() if {"rows", "pack"} & use.decides)


@pytest.mark.parametrize(
    ("setting", "change"),
    [
        ({}, {"feed.memory_gib": 1.0, "feed.keep": "stream"}),
        ({}, {"evaluation.seeds": 9, "evaluation.shots": [1]}),
        ({}, {"train.keep_checkpoints": 9, "train.report_every_s": 1.0}),
        ({}, {"train.workers": 2, "train.min_workers": 1}),
        ({}, {"sequence_model.width": 80}),
        ({}, {"optim.backbone_lr": 1.0, "pictures.augment": False}),
        (FINETUNE, {"pictures.keep": "stream", "pictures.memory_gib": 1.0}),
        (FINETUNE, {"optim.lora_lr": 1.0, "train.workers": 2, "train.sharding": "full"}),
        ({"train_max_steps": 0}, {"optim.lr": 1.0, "train.patience": 3, "mixing.loss_weight.names": 3.0}),
        ({"model_head": "prior"}, {"optim.lr": 1.0, "train.patience": 3, "mixing.loss_weight.names": 3.0}),
    ],
)
def test_what_changes_no_model_is_no_change_of_training(setting: dict[str, Any], change: dict[str, Any]) -> None:
    one = test_spaces.experiment(**setting)
    assert trained_settings(one.override(change)) == trained_settings(one)
    label = pack_label(one)
    assert pack_label(one.override(change)) == label
    assert (label is None) == bool(setting) or not one.num_steps


@pytest.mark.parametrize(
    ("setting", "change"),
    [
        (FINETUNE, {"pictures.augment": False}),
        (SEQUENCES, {"sequence_model.width": 80}),
        (SEQUENCES | {"sequence_model.task": "masked_token"}, {"sequence_model.masked_share": 0.5}),
        ({}, {"corpora.names.control": "shuffled_labels"}),
        ({}, {"data.split_seed": 3}),
    ],
)
def test_what_changes_a_model_is_a_change_of_training(setting: dict[str, Any], change: dict[str, Any]) -> None:
    one = test_spaces.experiment().override(
        {key.replace("_", ".", 1) if "." not in key else key: value for key, value in setting.items()}
    )
    assert trained_settings(one.override(change)) != trained_settings(one)


def test_rows_and_store_have_their_own_keys() -> None:
    one = test_training.experiment()
    for decision, change in ("rows", {"data.split_seed": 5}), ("store", {"embed.dtype": "float16"}):
        changed = one.override(change)
        assert {each for each in DECISIONS if deciding(one, each) != deciding(changed, each)} - {"model"} == {decision}


def test_a_corpus_takes_part_with_a_weight_and_a_ratio() -> None:
    one = test_spaces.experiment()
    assert one.active_auxiliaries == ("names", "templates", "sounds")
    assert one.is_active("photos")
    assert one.override({"mixing.batch_ratio.names": 0}).active_auxiliaries == ("templates", "sounds")


def test_the_settings_reference_is_up_to_date_and_says_what_every_key_means() -> None:
    assert not [leaf.key for leaf in leaves(Experiment) if not leaf.field.description]
    written = (Path(__file__).parents[2] / "docs" / "settings.md").read_text(encoding="utf-8")
    assert settings_reference() == written, "run: python -m uml_core.config > docs/settings.md"
