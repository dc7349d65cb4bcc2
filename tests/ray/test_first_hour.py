"""docs/first_hour.md and the scikit-learn script of docs/python.md run as written, on small data made here."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
import yaml

from pipelines.__main__ import main as uml
from tests.conftest import CLASSES, draw, tracking_in
from tests.light_encoder import light
from tests.local.test_documents import ROOT, blocks

PAGE = ROOT / "docs" / "first_hour.md"
DIGITS = ("zero", "one", "two")
SMALL = {  # sections of an experiment file: less to do and to import than what the page leaves at its defaults
    "encoders": {"text": {"source": "module", "name": "tests.light_encoder:WordCounts"}},
    "embed": {"batch_size": 8},
    "train": {"max_steps": 10, "eval_every": 10, "batch_size": 8},
    "tune": {"seeds": 3, "max_concurrent_trials": 1},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the files that the page begins with."""
    rng = np.random.default_rng(0)
    data = tmp_path / "data"
    for label in CLASSES:
        for index in range(12):
            draw(label, rng).save(made(data / "photos" / label / f"{index}.png"))
        draw(label, rng).save(made(data / "new_photos" / f"{label}.png"))
    for pitch, label in enumerate(DIGITS, start=1):
        for index in range(12):
            wave = np.sin(np.arange(2000) * 0.1 * pitch) + rng.normal(0, 0.1, 2000)
            soundfile.write(made(data / "sounds" / label / f"{index}.wav"), wave / 2, 8000)
        soundfile.write(made(data / "new_sounds" / f"{label}.wav"), wave / 2, 8000)
    for name, labels in (("descriptions", CLASSES), ("sentences", DIGITS)):
        lines = [(f"{words} {label}", label) for label in labels for words in ("a", "the", "one more")]
        pd.DataFrame(lines, columns=["text", "label"]).to_csv(data / f"{name}.csv", index=False)
    for name in ("left", "right", "new_left"):
        numbers = np.repeat(np.eye(6), 12, axis=0) + rng.normal(0, 0.3, (72, 6))
        table = pd.DataFrame(numbers, columns=[f"x{column}" for column in range(6)])
        table.assign(label=np.repeat(list("abcdef"), 12)).to_csv(data / f"{name}.csv", index=False)
    tracking_in(made(tmp_path / "runs" / "mlflow.db").parent)  # where it is by default
    monkeypatch.delenv("UML_ROOT")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def small(written: str) -> dict[str, Any]:
    """An experiment file of the page, with less to do."""
    tree: dict[str, Any] = yaml.safe_load(written)
    return light({**tree, **{name: {**tree.get(name, {}), **section} for name, section in SMALL.items()}})


@pytest.mark.usefixtures("ray_cluster")
def test_every_line_of_the_first_hour_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    for language, block in re.findall(r"^```(yaml|python|bash)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if language == "yaml":
            tree = small(block)
            (folder / f"{tree['name']}.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
        elif language == "python":
            exec(block, {})
        else:
            for line in block.splitlines():
                assert uml(shlex.split(line, comments=True)[1:]) == 0, line
    assert len(list(folder.glob("*.yaml"))) == len(list(folder.glob("new_*.parquet"))) == 3
    printed = capsys.readouterr().out
    for table in (
        "corpus               rows  rejected   rows/s",
        "verdict              gain (95 % interval)    why",
        "best model: models:/photos@best",
    ):
        assert table in text
        assert table in printed, "what the page shows is what is printed"
    assert set(pd.read_parquet(folder / "new_left.parquet")["prediction"]) <= set("abcdef")
    assert (folder / "runs" / "photos" / "report" / "index.html").is_file()


@pytest.mark.usefixtures("ray_cluster")
def test_the_script_of_scikit_learn_goes_over_to_the_steps(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for name, width, labels in (("photo", 8, CLASSES), ("sentence", 5, CLASSES)):
        codes = np.repeat(np.arange(3), 12)
        np.save(folder / f"{name}s.npy", np.eye(3, width)[codes] + rng.normal(0, 0.3, (36, width)))
        np.save(folder / f"{name}_labels.npy", np.array(labels)[codes])
    names: dict[str, Any] = {}
    *_, script, arrays, steps = blocks(ROOT / "docs" / "python.md", "python")
    exec(script + arrays, names)
    assert names["model"].score(names["test_X"], names["test_y"]) > 0.6
    assert steps.count('tune={"seeds": 5}') == 1
    exec(steps.replace('tune={"seeds": 5}', "tune=SMALL['tune'], train=SMALL['train']"), {**names, "SMALL": SMALL})
    assert "Ship " in capsys.readouterr().out, "the verdict"
