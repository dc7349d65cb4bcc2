"""The notebook over the steps runs from top to bottom on arrays, with places relative to a working directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "steps.ipynb"


@pytest.mark.usefixtures("ray_cluster")
def test_the_notebook_finds_the_gain_and_predicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UML_ROOT")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert names["advice"].corpora["sensor"].verdict == "helps"
    assert names["swept"].verdict_kind == "gain"
    right = names["predicted"]["prediction"].astype(int) == names["y"][names["test"]]
    assert right.mean() > 0.75
    assert Path(names["page"].report).is_relative_to(tmp_path / "runs" / "digits")
