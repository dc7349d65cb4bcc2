"""The theory step on a local Ray: every task once, the same results as without Ray, page and files written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.command_line import guarded, step_parser
from pipelines.theory import step as theory
from uml_core.theory.study import Request, as_json, run_study


def test_the_step_writes_what_the_tasks_find(
    ray_cluster: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    request = Request(trials=5, steps=1, cases=5)
    summary = theory.run(request, tmp_path / "theory")
    written = json.loads((tmp_path / "theory" / "theory.json").read_text(encoding="utf-8"))
    alone = as_json(run_study(request))
    for key in ("findings", "models", "worlds"):
        assert written[key] == alone[key]
    for curve, expected in zip(written["curves"], alone["curves"], strict=True):
        assert (curve["arm"], curve["seed"]) == (expected["arm"], expected["seed"])
        assert curve["errors"] == pytest.approx(expected["errors"], rel=1e-3)
    assert (tmp_path / "theory" / "index.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert len(list((tmp_path / "theory" / "figures").iterdir())) == 2
    assert guarded(step_parser("theory", example=""), lambda _: summary, []) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["page"] == str(tmp_path / "theory" / "index.html")
    assert last["monte_carlo"]["cases"] == 72
