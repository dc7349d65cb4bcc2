"""Run folders: which attempt a line goes on with, whatever became of the process that began it."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.ray_train import attempts
from pipelines.ray_train.attempts import LEASE_FILE, RUN_FILE, open_attempt
from tests.conftest import vector_tree
from uml_core.config import Experiment, parse_experiment
from uml_core.errors import OutageError
from uml_core.files import lease


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return parse_experiment(vector_tree(tmp_path))


def begun(experiment: Experiment, run_id: str = "one", **holder: Any) -> Path:
    """Begin an attempt, as another process did that `holder` describes; returns its file."""
    with open_attempt(experiment) as attempt:
        attempt.begin(run_id)
        file = Path(attempt.directory, RUN_FILE)
        record = json.loads(file.with_name(LEASE_FILE).read_text())
    if holder:
        file.with_name(LEASE_FILE).write_text(json.dumps({**record, **holder}))
    return file


def opened(experiment: Experiment) -> tuple[str, str | None]:
    with open_attempt(experiment) as attempt:
        return attempt.name, attempt.run_id


def test_a_killed_run_is_gone_on_with_and_a_finished_one_begun_anew(experiment: Experiment) -> None:
    begun(experiment, pid=2**22 + 1)
    with open_attempt(experiment) as attempt:
        assert (attempt.name, attempt.run_id) == ("1", "one")
        attempt.finish()
    assert opened(experiment) == ("2", None)
    assert opened(experiment) == ("2", None), "it was not begun"


def test_a_run_of_an_older_version_is_gone_on_with(experiment: Experiment) -> None:
    record = {"run_id": "one", "finished": False, "outcome": None, "host": "far", "pid": 1, "started_at": 0.0}
    begun(experiment).write_text(json.dumps(record))
    assert opened(experiment) == ("1", "one")


def test_a_living_holder_keeps_its_run(experiment: Experiment) -> None:
    with open_attempt(experiment) as first:
        first.begin("one")
        with open_attempt(experiment) as second:
            assert (second.name, second.run_id) == ("2", None)
            with open_attempt(experiment) as third:
                assert third.name == "3", "though the second has not begun"
                third.begin("three")
        assert opened(experiment) == ("3", "three"), "the second never began"
        first.keep({"accuracy": 1})
        first.finish()
    assert opened(experiment) == ("3", "three")


def test_a_run_on_another_host_is_left_alone_while_it_lives(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lease, "LOCAL_POLL_S", 0.05)
    far = {"host": "far", "expires_at": time.time() + 600}
    file = begun(experiment, **far).with_name(LEASE_FILE)
    record = json.loads(file.read_text())
    renew = threading.Timer(0.3, lambda: file.write_text(json.dumps({**record, "expires_at": time.time() + 660})))
    renew.start()
    assert opened(experiment) == ("2", None), "two hosts never go on with one run"
    renew.join()
    assert "is held by a run on another host; waiting up to 60 s to see whether it lives" in caplog.text


@pytest.mark.parametrize("skew_s", [-60, 0, 3600])
def test_a_run_whose_host_is_gone_is_gone_on_with_once_its_lease_expires(
    experiment: Experiment, skew_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever that host's clock says."""
    monkeypatch.setattr(lease, "EXPIRE_S", 0.3)
    monkeypatch.setattr(lease, "LOCAL_POLL_S", 0.02)
    begun(experiment, host="far", expires_at=time.time() + skew_s)
    assert opened(experiment) == ("1", "one")


def test_a_run_that_was_taken_over_writes_no_more(experiment: Experiment) -> None:
    with pytest.raises(OutageError, match="run the line again"), open_attempt(experiment) as attempt:  # noqa: PT012
        attempt.begin("one")
        file = Path(attempt.directory, LEASE_FILE)
        file.write_text(json.dumps({**json.loads(file.read_text()), "owner": "o", "host": "far", "pid": 7}))
        with pytest.raises(OutageError, match="is held by process 7 on host far now"):
            attempt.finish()
        raise RuntimeError("whatever comes of it")
    assert not json.loads(file.with_name(RUN_FILE).read_text())["finished"]


@pytest.mark.parametrize("content", ["", '{"run_id": "on', "[]", "{}"])
def test_a_damaged_file_is_told_and_its_folder_left_alone(
    experiment: Experiment, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    begun(experiment).write_text(content)
    assert opened(experiment) == ("2", None)
    assert f"{RUN_FILE} is damaged; the run that it names is not resumed" in caplog.text


def test_a_process_killed_while_it_writes_leaves_the_file_as_it_was(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = begun(experiment)
    before = file.read_text()

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), open_attempt(experiment) as attempt:  # noqa: PT012
        monkeypatch.setattr(attempts, "write_whole", killed)
        attempt.finish()
    assert file.read_text() == before
