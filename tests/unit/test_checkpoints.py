"""Checkpoints on disk: which one a run goes on from, whatever was half-written, damaged or lost."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
import torch

from pipelines.ray_train.checkpoints import (
    FACTS_FILE,
    STATE_FILE,
    TRAIN_LIST,
    DamagedCheckpointError,
    load_state,
    newest_state,
    repair,
    save_state,
)


def write(run_dir: Path, *steps: int) -> list[Path]:
    """Write a checkpoint of each step, under names whose order is not the steps'."""
    folders = []
    for number, step in enumerate(steps):
        folder = run_dir / f"checkpoint_{number}"
        folder.mkdir(parents=True)
        save_state({"progress": {"step": step}, "model": {"weight": torch.full((100,), float(step))}}, folder)
        folders.append(folder)
    return folders


def write_list(run_dir: Path, folders: list[Path], version: str = ray.__version__) -> None:
    results = [{"checkpoint_dir_name": folder.name, "metrics": {}} for folder in folders]
    (run_dir / TRAIN_LIST).write_text(json.dumps({"ray_version": version, "checkpoint_results": results}))


def cut(folder: Path) -> None:
    os.truncate(folder / STATE_FILE, (folder / STATE_FILE).stat().st_size // 2)


def flip(folder: Path) -> None:
    content = bytearray((folder / STATE_FILE).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / STATE_FILE).write_bytes(content)


DAMAGES = {
    "cut": cut,
    "one bit": flip,
    "no state": lambda folder: (folder / STATE_FILE).unlink(),
    "no facts": lambda folder: (folder / FACTS_FILE).unlink(),
    "torn facts": lambda folder: (folder / FACTS_FILE).write_text('{"step": 3', encoding="utf-8"),
    "other facts": lambda folder: (folder / FACTS_FILE).write_text("{}", encoding="utf-8"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it(
    damage: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folders = write(tmp_path, 20, 30, 10)
    assert newest_state(str(tmp_path))["progress"]["step"] == 30
    assert not caplog.text
    damage(folders[1])
    with pytest.raises(DamagedCheckpointError):
        load_state(folders[1])
    state = newest_state(str(tmp_path))
    assert state["progress"]["step"] == 20
    assert torch.equal(state["model"]["weight"], torch.full((100,), 20.0))
    assert f"checkpoint {folders[1]} is passed over for the one before it" in caplog.text
    repair(str(tmp_path), keep=2)
    assert [folder.exists() for folder in folders] == [True, False, True]


def test_a_run_without_checkpoints_begins() -> None:
    assert newest_state("/nowhere/at/all") is None
    repair("/nowhere/at/all", keep=2)


def test_a_run_that_ended_before_its_first_state_begins(tmp_path: Path) -> None:
    (tmp_path / "checkpoint_0").mkdir()
    save_state({}, tmp_path / "checkpoint_0")
    assert newest_state(str(tmp_path)) is None


def test_only_as_many_are_kept_as_asked_and_what_train_lists_is_left_to_it(tmp_path: Path) -> None:
    folders = write(tmp_path, 20, 30, 10, 40)
    write_list(tmp_path, [folders[2], folders[3]])
    repair(str(tmp_path), keep=2)
    assert [folder.exists() for folder in folders] == [False, True, True, True]
    assert (tmp_path / TRAIN_LIST).exists()


@pytest.mark.parametrize("broken", ["torn", "names what is gone", "other version"])
def test_trains_list_is_removed_where_train_could_not_begin_with_it(broken: str, tmp_path: Path) -> None:
    folders = write(tmp_path, 10, 20)
    write_list(tmp_path, folders, version="1.0" if broken == "other version" else ray.__version__)
    if broken == "torn":
        os.truncate(tmp_path / TRAIN_LIST, 40)
    if broken == "names what is gone":
        cut(folders[1])
    repair(str(tmp_path), keep=2)
    assert not (tmp_path / TRAIN_LIST).exists()
    assert newest_state(str(tmp_path))["progress"]["step"] == (10 if broken == "names what is gone" else 20)
