"""The notebook runs from top to bottom, and shows what it says it shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parents[2] / "examples" / "unpaired_classifier.ipynb"


def test_the_notebook_shows_a_gain_that_shuffled_labels_do_not_give() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    results = {key: value.mean() for key, value in names["results"].items()}
    for shots in (1, 2, 4):
        assert results[shots, "with the sensor"] > results[shots, "alone"] + 0.03
        assert abs(results[shots, "labels shuffled"] - results[shots, "alone"]) < 0.01
    nines, union = names["nines"], names["union"]
    assert union.score(names["X"][nines], names["y"][nines]) > 0.3
