"""The theory step on a local Ray: every task once, the same results as without Ray, page and files written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines import theory
from pipelines.command_line import guarded
from uml_core.theory.study import Request, as_json, collect, plan


def test_the_step_writes_what_the_tasks_find(
    ray_cluster: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    request = Request(trials=5, num_steps=1, survey_cases=5)
    summary = theory.run(request, tmp_path / "theory")
    written = json.loads((tmp_path / "theory" / "theory.json").read_text(encoding="utf-8"))
    alone = as_json(collect(request, [result for task in plan(request) for result in task.run()]))
    for key in ("cases", "surveys", "noise_sweep", "exchange", "floors", "findings"):
        assert written[key] == alone[key]
    assert [curve["arm"] for curve in written["curves"]] == [curve["arm"] for curve in alone["curves"]]
    assert (tmp_path / "theory" / "index.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert len(list((tmp_path / "theory" / "figures").iterdir())) == 10
    assert guarded(lambda: summary) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["page"] == str(tmp_path / "theory" / "index.html")
    assert last["monte_carlo"]["cases"] == 72
