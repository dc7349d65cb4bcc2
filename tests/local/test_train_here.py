"""Training in the process that the user started: what is read, killed, refused and left behind; nothing starts Ray."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from safetensors.torch import load_file

from pipelines.embed import step as embed
from pipelines.ray_train.attempts import Attempt
from pipelines.ray_train.checkpoints import load_state
from pipelines.train import step as train
from pipelines.train.summary import trains_here
from tests.conftest import vector_tree, write_vector_corpora
from uml_core.config import Experiment, parse_experiment
from uml_core.errors import InputError
from uml_core.store.corpus_store import CorpusStore
from uml_core.tracking import ended_runs
from uml_core.tracking.reading import download, experiment_runs, find_run
from uml_core.tracking.writing import MLflowTracker, start_run
from uml_core.training import run as training_run

ROOT = Path(__file__).parents[2]
# Long enough to be killed inside, with a checkpoint every 0.05 s.
LONG = {"train.max_steps": 4000, "train.eval_every": 50, "train.patience": 1000, "train.report_every_s": 0.05}
LONG |= {"train.report_share": 1}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    directory = tmp_path_factory.mktemp("here")
    write_vector_corpora(directory)
    experiment = parse_experiment(vector_tree(directory))
    embed.run(experiment)
    return experiment


def weights_of(experiment: Experiment, run_id: str, directory: Path) -> dict[str, torch.Tensor]:
    return load_file(download(experiment.tracking.uri, f"runs:/{run_id}/weights/model.safetensors", directory))


def checkpoints(experiment: Experiment) -> list[Path]:
    """The folders of checkpoints that were written to their ends, oldest first."""
    folder = Path(experiment.store, "_runs", f"train-{experiment.config_hash}", "1")
    return [file.parent for file in sorted(folder.glob("checkpoint_*/state.json"))]


def test_a_killed_run_goes_on_in_its_mlflow_run_and_ends_as_the_one_that_was_left_alone(
    experiment: Experiment, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = experiment.override({**LONG, "name": "killed"})
    file = tmp_path / "experiment.yaml"
    file.write_text(settings.to_yaml(), encoding="utf-8")
    driver = subprocess.Popen([sys.executable, "-m", "pipelines.train", str(file)], cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while len(checkpoints(settings)) < 2:
            assert driver.poll() is None, "it ended too early"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.3 * random.random())
        assert driver.poll() is None, "it is killed before its end"
    finally:
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    os.truncate(checkpoints(settings)[-1] / "state.pt", 1000)
    threads = torch.get_num_threads()
    results = train.run(settings).results
    assert torch.get_num_threads() == threads
    assert "is passed over for the one before it: its state.pt is not what was written" in caplog.text
    assert len(checkpoints(settings)) == settings.train.keep_checkpoints
    (record,) = experiment_runs(settings.tracking.uri, settings.name)
    assert (record.run_id, record.status, record.metrics["perf/steps"]) == (results["run_id"], "FINISHED", 4000)
    alone = train.run(experiment.override(LONG)).results
    assert alone["target_samples"] == results["target_samples"]
    weights = weights_of(settings, record.run_id, tmp_path / "killed")
    for name, value in weights_of(experiment, alone["run_id"], tmp_path / "alone").items():
        assert torch.equal(value, weights[name]), name
    assert not ray.is_initialized()


def test_who_is_killed_as_its_run_is_made_leaves_no_second_one(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After MLflow has made the run, and before the run folder names it; or as Ray stops, which is before the end."""
    settings = experiment.override({"name": "made"})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Attempt, "begin", killed)
        with pytest.raises(KeyboardInterrupt):
            train.run(settings)
    session = train._session

    @contextlib.contextmanager
    def killed_as_it_stops(*given: Any) -> Iterator[None]:
        with session(*given):
            yield
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "_session", killed_as_it_stops)
        with pytest.raises(KeyboardInterrupt):
            train.run(settings)
    results = train.run(settings).results
    (record,) = experiment_runs(settings.tracking.uri, settings.name)
    assert (record.run_id, record.status) == (results["run_id"], "FINISHED")


@pytest.mark.parametrize("by_client", [False, True])
def test_who_is_killed_as_it_logs_an_embedding_leaves_one_run(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, by_client: bool
) -> None:
    """After the store is published; the same line, which has nothing to embed, logs it."""
    settings = experiment.override({"name": f"embedded-{by_client}", "store": str(tmp_path / "store")})

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    if by_client:  # as to a server
        monkeypatch.setattr(ended_runs, "is_file", lambda uri: False)
    with monkeypatch.context() as patch:
        patch.setattr(*(MLflowTracker, "finish") if by_client else (ended_runs, "write_runs"), killed)
        with pytest.raises(KeyboardInterrupt):
            embed.run(settings)
    assert all(facts["up_to_date"] for facts in embed.run(settings).results["corpora"].values())
    assert [run.status for run in experiment_runs(settings.tracking.uri, settings.name)] == ["RUNNING"] * by_client, (
        "it may live"
    )
    for mark in (tmp_path / "store").rglob(".unlogged"):
        mark.write_text(json.dumps({**json.loads(mark.read_text()), "pid": 2**22 + 1}))
    another = start_run(settings, name="embed", kind="embed", tags={"uml.store_fingerprint": "other=0"}).run_id
    for _ in range(2):
        embed.run(settings)
        found = [(run.status, run.run_id) for run in experiment_runs(settings.tracking.uri, settings.name)]
        assert sorted(status for status, _ in found) == ["FINISHED", "RUNNING"]
        assert ("RUNNING", another) in found, "a living process's is left alone"
    assert not list((tmp_path / "store").rglob(".*"))


def test_what_another_host_has_logged_meanwhile_is_not_logged_again(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = experiment.override({"name": "meanwhile", "store": str(tmp_path / "store")})
    log_new = embed._log_new

    def later(*given: Any) -> None:
        (mark,) = (tmp_path / "store" / "target").rglob(".unlogged")
        mark.unlink()
        log_new(*given)

    monkeypatch.setattr(embed, "_log_new", later)
    embed.run(settings)
    (run,) = experiment_runs(settings.tracking.uri, settings.name)
    assert run.tags["uml.store_fingerprint"].startswith("names=")


def test_seeds_and_twins_read_their_corpora_once(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    load = CorpusStore.load
    monkeypatch.setattr(CorpusStore, "load", lambda store: read.append(store.corpus) or load(store))
    began = time.time()
    found = train.run(experiment.override({"train.twin": True, "train.seeds": 2, "data.shots": 4})).results
    assert sorted(read) == ["names", "target"]
    assert len({run["run_id"] for seed in found["seeds"] for run in (seed, seed["twin"])}) == 4
    for seed in found["seeds"]:
        run, twin = (find_run(experiment.tracking, each["run_id"]) for each in (seed, seed["twin"]))
        assert (run.kind, twin.kind) == ("uml", "unimodal")
        for matched in ("mixing/target_samples", "model/trained_parameters"):
            assert twin.metrics[matched] == run.metrics[matched]
        assert twin.metrics["perf/time_to_first_step_s"] < time.time() - began, "not since this process began"


def test_divergence_is_told_fails_the_run_and_leaves_the_last_good_checkpoint(experiment: Experiment) -> None:
    """The rate grows until the weights overflow, many reports after the start."""
    changes = {"optim.lr": 1e38, "optim.warmup_lr": 1e-5, "optim.warmup_steps": 10**36, "train.max_steps": 400}
    changes |= {"train.eval_every": 1, "train.report_every_s": 0.01, "train.patience": 1000, "train.report_share": 1}
    message = r"is not finite at step (\d+); lower optim.lr.*; step (\d+) is kept in (\S+)$"
    with pytest.raises(InputError, match=message) as told:
        train.run(experiment.override({**changes, "name": "diverges"}))
    at, good, path = re.search(message, str(told.value)).groups()
    assert experiment_runs(experiment.tracking.uri, "diverges")[0].status == "FAILED"
    state = load_state(Path(path))
    assert state["progress"]["step"] == int(good) <= int(at)
    assert all(value.isfinite().all() for value in state["model"].values())


def test_an_interrupted_run_goes_on(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = experiment.override({"name": "interrupted"})
    with monkeypatch.context() as patch:

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(training_run.TrainingRun, "evaluate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train.run(settings)
    assert train.run(settings).results["steps"] == 40
    assert [record.status for record in experiment_runs(settings.tracking.uri, settings.name)] == ["FINISHED"]


def test_a_gpu_that_is_not_there_is_not_waited_for(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"train.use_gpu is true, but torch finds no GPU .*; set train.use_gpu=false"):
        train.run(experiment.override({"name": "no-gpu", "train.use_gpu": True}))


@pytest.mark.parametrize(
    ("changes", "address", "here"),
    [
        ({}, "", True),
        ({}, "10.0.0.1:6379", False),
        ({"train.workers": 1}, "", False),
        ({"train.workers": 2}, "", False),
        ({"model.head": "prior", "train.workers": 1}, "10.0.0.1:6379", True),
        ({"train.max_steps": 0}, "10.0.0.1:6379", True),
    ],
)
def test_workers_train_where_they_are_asked_for_and_on_a_cluster(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], address: str, here: bool
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert trains_here(experiment.override(changes)) is here
