"""Run folders: which attempt a line goes on with, whatever became of the process that began it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipelines.ray_train.attempts import RUN_FILE, open_attempt
from tests.conftest import vector_tree
from uml_core.config import Experiment, parse_experiment


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return parse_experiment(vector_tree(tmp_path))


def begun(experiment: Experiment, run_id: str = "one", **owner: Any) -> Path:
    """Begin an attempt, as another process did; returns its file."""
    attempt = open_attempt(experiment)
    attempt.begin(run_id)
    file = Path(attempt.directory, RUN_FILE)
    file.write_text(json.dumps({**json.loads(file.read_text()), **owner}))
    return file


def test_a_killed_run_is_gone_on_with_and_a_finished_one_begun_anew(experiment: Experiment) -> None:
    begun(experiment, pid=2**22 + 1)
    attempt = open_attempt(experiment)
    assert (attempt.name, attempt.run_id) == ("1", "one")
    attempt.finish()
    again = open_attempt(experiment)
    assert (again.name, again.run_id) == ("2", None)


def test_a_living_owner_keeps_its_run_and_another_process_of_its_number_is_not_it(experiment: Experiment) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        started_at = psutil.Process(other.pid).create_time()
        file = begun(experiment, pid=other.pid, started_at=started_at)
        assert open_attempt(experiment).run_id is None
        file.write_text(json.dumps({**json.loads(file.read_text()), "started_at": started_at - 3600}))
        assert open_attempt(experiment).run_id == "one"
        assert json.loads(file.read_text())["pid"] == os.getpid(), "the new owner"
        file.write_text(json.dumps({**json.loads(file.read_text()), "pid": other.pid, "started_at": started_at}))
        other.kill()
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # ended, and no one has asked how
        assert open_attempt(experiment).run_id == "one"


@pytest.mark.parametrize("content", ["", '{"run_id": "on', "[]", "{}"])
def test_a_damaged_file_is_told_and_its_folder_left_alone(
    experiment: Experiment, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    begun(experiment).write_text(content)
    attempt = open_attempt(experiment)
    assert (attempt.name, attempt.run_id) == ("2", None)
    assert f"{RUN_FILE} is damaged; the run that it names is not resumed" in caplog.text


def test_a_process_killed_while_it_writes_leaves_the_file_as_it_was(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = begun(experiment, pid=2**22 + 1)
    before, attempt = file.read_text(), open_attempt(experiment)
    file.write_text(before)

    def killed(_: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(json, "dumps", killed)
    with pytest.raises(KeyboardInterrupt):
        attempt.finish()
    assert file.read_text() == before
