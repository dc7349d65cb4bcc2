"""Every example file is an experiment that the space it names accepts, and the README lists it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tune_spaces import load_space, trials_of
from uml_core.config import load_experiment

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = sorted((EXAMPLES / "paper").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_example_builds_the_space_it_names(file: Path) -> None:
    line = re.search(r"python -m pipelines\.tune (\S+) --space (\w+)", file.read_text(encoding="utf-8"))
    assert line is not None
    assert EXAMPLES.parent / line[1] == file, "a line to copy"
    experiment = load_experiment(file)
    specs = trials_of(load_space(line[2], experiment), experiment)
    assert len({spec.experiment.seed for spec in specs}) >= 3
    rows = (EXAMPLES / "paper" / "README.md").read_text(encoding="utf-8").splitlines()
    row = next(row for row in rows if row.startswith("|") and f"({file.name})" in row)
    assert f"`{line[2]}`" in row


def test_names_are_told_apart_in_mlflow() -> None:
    names = [load_experiment(file).name for file in FILES]
    assert len(set(names)) == len(names) == 10


def test_three_modalities() -> None:
    experiment = load_experiment(EXAMPLES / "tuxpaint" / "experiment.yaml")
    arms = {arm.name for arm in load_space("modalities", experiment).arms}
    assert {"unimodal", "descriptions", "sounds", "descriptions+sounds", "descriptions_init"} <= arms
