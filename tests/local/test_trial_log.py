"""A sweep's log: what a trial costs the database, whose time it takes, and what happens where writing fails."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from pipelines.tune import log as log_module
from pipelines.tune.folder import TrialResult
from pipelines.tune.log import TrialLog
from tests.conftest import vector_tree
from tune_spaces import TrialSpec
from uml_core.config import Experiment, parse_experiment
from uml_core.errors import OutageError
from uml_core.tracking import ended_runs, reading
from uml_core.tracking.reading import experiment_runs, find_run, sweep_runs
from uml_core.tracking.records import MetricPoint
from uml_core.tracking.writing import open_experiment, start_run

RESULT = TrialResult(0.5, 1.0, [MetricPoint("val/accuracy", 0.5), MetricPoint("perf/train_s", 2.0)], ended_at=1000.0)


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    experiment = parse_experiment(vector_tree(tmp_path))
    open_experiment(experiment.tracking, experiment.name)
    return experiment


def trials_in(experiment: Experiment, count: int) -> tuple[str, dict[str, TrialSpec]]:
    """A sweep's run, and trials of it by their keys."""
    parent = start_run(experiment, name="sweep", kind="sweep", tags={})
    specs = [TrialSpec("uml", "", experiment.override({"seed": seed})) for seed in range(count)]
    return parent.run_id, {spec.key: spec for spec in specs}


def data_of(experiment: Experiment, run_id: str) -> dict[str, Any]:
    """All that MLflow's client reads of a run, without what differs from run to run."""
    run = MlflowClient(experiment.tracking.uri).get_run(run_id)
    facts = {key: value for key, value in dict(run.info).items() if key not in ("run_id", "run_uuid", "artifact_uri")}
    tags = {key: value for key, value in run.data.tags.items() if key != "uml.request"}
    place = run.info.artifact_uri.replace(run_id, "ID")
    return {**facts, "tags": tags, "params": run.data.params, "metrics": run.data.metrics, "place": place}


def test_trials_are_written_as_mlflows_client_writes_them(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Directly into the tables, without one call of the client, off the caller's thread; and found by a search."""
    parent, specs = trials_in(experiment, 5)
    failed = list(specs)[1]
    points = [MetricPoint("val/accuracy", value, step) for step, value in ((20, 0.5), (10, 0.75))]
    odd = [MetricPoint("val/nll", float("inf")), MetricPoint("test/class_accuracy/C++", 1.0), *points]
    results = {key: replace(RESULT, points=[*RESULT.points, *odd]) for key in specs}
    results[failed] = replace(TrialResult.failed("no data"), ended_at=1000.0)
    first = next(iter(specs.values()))
    written: list[dict[str, dict[str, Any]]] = []
    for by_client in (True, False):
        calls, threads = Counter[str](), set[threading.Thread]()
        with monkeypatch.context() as patch:
            patch.setattr(ended_runs, "is_file", lambda uri, by_client=by_client: not by_client)
            for name in ("create_run", "log_batch", "set_terminated", "set_tag"):
                patch.setattr(MlflowClient, name, counting(getattr(MlflowClient, name), name, calls))
            for name in ("write_runs", "add_to_runs"):
                patch.setattr(log_module, name, noting_thread(getattr(ended_runs, name), threads))
            with TrialLog(experiment, parent, specs, {"git.commit": "abc"}) as log:
                for key, result in results.items():
                    log.add(key, result)
                log.mark_selected(first, [MetricPoint("test/accuracy", 0.25)], {"note.txt": b"x"})
        expected = {"create_run": 5, "log_batch": 5 + 1, "set_terminated": 5} if by_client else {}
        assert calls == expected
        assert threading.current_thread() not in threads
        written.append({key: data_of(experiment, log.tracker(spec).run_id) for key, spec in specs.items()})
    assert written[0] == written[1]
    assert written[1][first.key]["metrics"]["val/accuracy"] == 0.5, "the value of the last step"
    assert written[1][failed]["status"] == "FAILED"
    assert written[1][first.key]["tags"]["uml.selected"] == "true"

    def read() -> list[Any]:
        uri, run_id = experiment.tracking.uri, log.tracker(first).run_id
        note = reading.download(uri, f"runs:/{run_id}/evaluation/note.txt", tmp_path).read_text()
        runs = sweep_runs(experiment, parent), experiment_runs(uri, experiment.name)
        return [*runs, find_run(experiment.tracking, run_id), note]

    found = read()
    assert Counter(record.tags["uml.trial"] for record in found[0][1:]) == dict.fromkeys(specs, 2)
    monkeypatch.setattr(reading, "is_file", lambda uri: False)
    assert found == read()
    monkeypatch.undo()
    MlflowClient(experiment.tracking.uri).log_metric(parent, "mine", float("nan"))  # a user's own: ours are finite
    assert math.isnan(sweep_runs(experiment, parent)[0].metrics["mine"])


def counting(call: Callable[..., Any], name: str, calls: Counter[str]) -> Callable[..., Any]:
    def counted(*given: Any, **named: Any) -> Any:
        calls[name] += 1
        return call(*given, **named)

    return counted


def noting_thread(call: Callable[..., Any], threads: set[threading.Thread]) -> Callable[..., Any]:
    def noted(*given: Any) -> Any:
        threads.add(threading.current_thread())
        return call(*given)

    return noted


def test_what_fails_in_writing_is_raised_and_ends_the_writing(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, specs = trials_in(experiment, 3)
    tried = []

    def away(*given: Any) -> list[str]:
        tried.append(given)
        raise OutageError("away")

    def write_all() -> None:
        with TrialLog(experiment, parent, specs, {}) as log:
            for key in specs:
                log.add(key, RESULT)

    with monkeypatch.context() as patch:
        patch.setattr(log_module, "write_runs", away)
        with pytest.raises(OutageError, match="away"):
            write_all()
        assert len(tried) == 1, "the others are not tried: the server would be waited for once more"
        log = TrialLog(experiment, parent, specs, {})
        log.add(next(iter(specs)), RESULT)
        for call in (log.flush, log.flush, lambda: log.add(next(iter(specs)), RESULT)):
            with pytest.raises(OutageError, match="away"):  # Ray Tune swallows what a callback raises once
                call()
    with TrialLog(experiment, parent, specs, {}) as again:
        again.catch_up(dict.fromkeys(specs, RESULT))
    records = sweep_runs(experiment, parent)[1:]
    assert Counter(record.tags["uml.trial"] for record in records) == dict.fromkeys(specs, 1)
    assert {record.status for record in records} == {"FINISHED"}
