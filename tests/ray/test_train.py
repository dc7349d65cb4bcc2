"""Training under Ray Train: the MLflow contract, 2 workers against 1, and resuming after kill -9."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
import ray
import torch
import yaml
from safetensors.torch import load_file

from pipelines import progress
from pipelines.embed import step as embed
from pipelines.export import step as export
from pipelines.ray_train.attempts import open_attempt
from pipelines.ray_train.checkpoints import load_state
from pipelines.run_data import load_data
from pipelines.train import step as train
from tests.conftest import vector_tree, write_vector_corpora
from tests.ray.conftest import joining
from tests.scraped import assert_exported
from uml_core.config import Experiment, parse_experiment
from uml_core.errors import InputError
from uml_core.evaluation.outcome import evaluation_points, measure_outcome
from uml_core.store.corpus_store import CorpusStore
from uml_core.tracking.reading import download, experiment_runs, find_run, load_predictor
from uml_core.training.run import TrainingRun

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    directory = tmp_path_factory.mktemp("train")
    write_vector_corpora(directory)
    experiment = parse_experiment(vector_tree(directory, name="on-workers"))
    embed.run(experiment)
    return experiment


# Batches that two workers cannot share evenly, of embeddings that are read ahead from files.
UNEVEN = {"train.batch_size": 7, "mixing.batch_ratio.names": 0.4, "train.gradient_cosine": True, "seed": 5}
STREAM = {"train.workers": 2, "feed.keep": "stream", "feed.memory_gib": 1e-5}
STREAMED = {**UNEVEN, **STREAM}


@pytest.fixture(scope="module")
def streamed(experiment: Experiment, ray_cluster: None) -> dict[str, Any]:
    """The results of two workers that stream, and what the driver logged, drew and read meanwhile."""
    log, read = logging.StreamHandler(io.StringIO()), list[str]()
    read_parquet = CorpusStore._read_parquet

    def noted(store: CorpusStore, path: str, columns: list[str] | None = None) -> pa.Table:
        read.extend(columns or ["everything"])
        return read_parquet(store, path, columns)

    logging.getLogger().addHandler(log)
    with contextlib.redirect_stderr(io.StringIO()) as bars, pytest.MonkeyPatch.context() as patch:
        patch.setattr(CorpusStore, "_read_parquet", noted)
        patch.setattr(progress, "LOG_S", 0.0)  # a log gets every state, not two a minute
        results = train.run(experiment.override(STREAMED)).results
    logging.getLogger().removeHandler(log)
    return {**results, "bars": bars.getvalue(), "log": log.stream.getvalue(), "read": set(read)}


# Many small batches, so that the kills fall inside the run, with a checkpoint every 0.2 s.
LONG = {"train.max_steps": 7_000, "train.eval_every": 50, "train.patience": 1000, "train.report_every_s": 0.2}
LONG |= {"train.report_share": 1, "train.workers": 1}


@pytest.fixture(scope="module")
def whole(experiment: Experiment) -> dict[str, Any]:
    """The results of the long run that was left alone, in this process."""
    results: dict[str, Any] = train.run(experiment.override({**LONG, "train.workers": "auto"})).results
    return results


def weights_of(experiment: Experiment, run_id: str, directory: Path) -> dict[str, torch.Tensor]:
    return load_file(download(experiment.tracking.uri, f"runs:/{run_id}/weights/model.safetensors", directory))


@pytest.mark.usefixtures("ray_cluster")
class TestOnOneCluster:
    """Tests that share a running Ray."""

    def test_a_run_follows_the_contract(self, experiment: Experiment, streamed: dict[str, Any], tmp_path: Path) -> None:
        results, bars = streamed, streamed["bars"]
        assert re.search(r"train uml 40/40 steps, .* steps/s, 0:00:00 left, loss target .*, names .*, val ", bars)
        record = find_run(experiment.tracking, results["run_id"])
        assert record.status == "FINISHED"
        assert (record.kind, record.params["seed"], record.params["data.shots"]) == ("uml", "5", "None")
        assert record.params["mixing.schedule"] == "joint"
        for name in (
            *("train/loss/target", "train/loss/names", "val/accuracy", "test/accuracy"),
            *("perf/samples_per_s", "perf/data_wait_s", "perf/report_share", "mixing/observed_ratio/names"),
        ):
            assert name in record.metrics, name
        for tag in ("uml.config_hash", "uml.store_fingerprint", "uml.corpora", "git.commit"):
            assert record.tags[tag], tag
        logged = download(experiment.tracking.uri, f"runs:/{record.run_id}/experiment.yaml", tmp_path)
        assert parse_experiment(yaml.safe_load(logged.read_text())).name == experiment.name
        with open_attempt(experiment.override(STREAMED)) as again:
            assert again.run_id is None, "a finished run again is a new run"

    def test_what_both_workers_did_is_on_rays_metrics_endpoint(
        self, experiment: Experiment, streamed: dict[str, Any]
    ) -> None:
        expected = {("ray_uml_steps_total", ""): 2 * 40, ("ray_uml_rows_total", "target"): streamed["target_samples"]}
        assert_exported(expected, experiment.name, "corpus")

    def test_the_driver_reads_no_embedding(self, streamed: dict[str, Any]) -> None:
        assert streamed["read"] == {"id", "label", "split"}

    def test_the_logged_model_gives_trainings_logits(
        self, experiment: Experiment, streamed: dict[str, Any], tmp_path: Path
    ) -> None:
        results = streamed
        assert re.fullmatch(r"models:/on-workers/\d+", results["model"])
        predictor = load_predictor(experiment.tracking.uri, results["model"], tmp_path / "model")
        weights = weights_of(experiment, results["run_id"], tmp_path)
        embeddings = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)
        projected = torch.from_numpy(embeddings) @ weights["projections.target.weight"].T
        expected = weights["scales.target"] * projected @ weights["head.weight"].T
        assert np.allclose(predictor.classify(embeddings).logits, expected.numpy(), atol=1e-5)
        uri = experiment.tracking.uri
        export.run(results["model_uri"], str(tmp_path / "head"), uri, formats=("safetensors",))
        exported = load_file(tmp_path / "head" / "head.safetensors")["head.weight"]
        assert np.allclose(embeddings @ exported.numpy().T, expected.numpy(), atol=1e-5)

    def test_two_workers_that_stream_equal_one_on_the_joined_batch(
        self, experiment: Experiment, streamed: dict[str, Any], tmp_path: Path
    ) -> None:
        """The one has its embeddings in memory, and trains in this process, without Ray."""
        settings = experiment.override(UNEVEN)
        assert streamed["feed"] == {"target": "stream", "names": "stream"}
        assert "embeddings of target, names are read ahead from a file in " in streamed["log"]
        record = find_run(experiment.tracking, streamed["run_id"])
        assert record.tags["uml.feed"] == "target=stream,names=stream"
        one = TrainingRun(settings, load_data(settings))
        *_, last = one.evaluations()
        two = weights_of(experiment, streamed["run_id"], tmp_path)
        for name, value in one.load_best().state_dict().items():
            assert torch.allclose(value, two[name], atol=1e-5), name
        ratio = measure_outcome(one).observed_ratio
        assert ratio == streamed["observed_ratio"] == {"names": pytest.approx(112 / 280)}
        (cosine,) = [point.value for point in evaluation_points(one, last) if "gradient_cosine" in point.name]
        assert cosine == pytest.approx(record.metrics["analysis/gradient_cosine/names"], abs=1e-4)
        assert 0 < abs(cosine) <= 1

    def test_divergence_is_told_fails_the_run_and_leaves_the_last_good_checkpoint(self, experiment: Experiment) -> None:
        """The rate grows until the weights overflow, many reports after the start."""
        changes = {"optim.lr": 1e38, "optim.warmup_lr": 1e-5, "optim.warmup_steps": 10**36, "train.max_steps": 400}
        changes |= {"train.eval_every": 1, "train.report_every_s": 0.01, "train.patience": 1000, "train.workers": 1}
        changes |= {"train.report_share": 1}
        message = (
            r"the (?:loss|gradient) of (?:target|names|target, names) is not finite at step (\d+); lower optim.lr.*"
            r" in that batch: (?:target|names) \S+, \S+, \S+, \S+, \S+ and \d+ more.*; step (\d+) is kept in (\S+)$"
        )
        with pytest.raises(InputError, match=message) as told:
            train.run(experiment.override(changes))
        at, good, path = re.search(message, str(told.value)).groups()
        assert experiment_runs(experiment.tracking.uri, experiment.name)[0].status == "FAILED"
        state = load_state(Path(path))
        assert state["progress"]["step"] == int(good) <= int(at)
        assert all(value.isfinite().all() for value in state["model"].values())


@pytest.mark.usefixtures("ray_cluster")
def test_more_workers_than_the_cluster_can_have_are_not_waited_for(experiment: Experiment) -> None:
    workers = experiment.override({"name": "many", "train.workers": 500, "train.batch_size": 500})
    with pytest.raises(InputError, match=r"train.workers is 500, but the cluster has \d+ CPUs, .* lower train.workers"):
        train.run(workers)
    with pytest.raises(InputError, match=r"train.workers is 500, but the cluster has \d+ GPUs, .* train.use_gpu=false"):
        train.run(workers.override({"train.use_gpu": True}))


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_that_is_killed_at_random_steps_ends_as_the_one_that_was_left_alone(
    experiment: Experiment, whole: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One run is hit by everything in turn, and ends with the weights and samples, to the bit, of the whole one,
    which no worker has trained.

    Its driver is killed, and its newest checkpoint damaged. The same line goes on in the same MLflow run, from the
    checkpoint before. Then its worker is killed, and then Ray Train's controller, whose workers' CPUs are not lost:
    else the next run that needs them all would wait for ever.
    """
    settings, rng = experiment.override({**LONG, "name": "killed"}), random.Random()
    file = tmp_path / "experiment.yaml"
    file.write_text(settings.to_yaml(), encoding="utf-8")
    line = [sys.executable, "-m", "pipelines.train", str(file)]
    actors = ("ray::RayTrainWorker", "ray::TrainController")
    earlier = processes(actors)  # of runs before, which may end slowly
    driver = subprocess.Popen(line, cwd=ROOT, env=joining(), start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        reached = [wait_for_step(settings, 300 + rng.randrange(400))]
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    assert processes(actors) - earlier, "Ray ends them, and the worker may write one more checkpoint before"
    wait_for_free_cpus()
    folders = Path(settings.store, "_runs", f"train-{settings.config_hash}", "1").glob("checkpoint_*/state.pt")
    os.truncate(max(folders), 1000)

    earlier = processes(actors)

    def kill() -> None:
        for actor in actors:
            # Beyond what was reached, or at its process's start: the killed one may have reported more steps since.
            step = wait_for_step(settings, reached[-1] + 200 + rng.randrange(400))
            while not (found := processes((actor,)) - earlier):
                time.sleep(0.05)
            os.kill(found.pop(), signal.SIGKILL)
            reached.append(step)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    results = train.run(settings).results
    killer.join(60)
    assert len(reached) == 3, reached
    assert reached[-1] < results["steps"] == LONG["train.max_steps"]
    assert "is passed over for the one before it: its state.pt is not what was written" in caplog.text
    assert "Ray Train's controller was lost; going on from the last checkpoint" in caplog.text
    (record,) = experiment_runs(settings.tracking.uri, settings.name)
    assert (record.status, record.metrics["perf/steps"]) == ("FINISHED", whole["steps"])
    weights = weights_of(settings, record.run_id, tmp_path / "killed")
    for name, value in weights_of(experiment, whole["run_id"], tmp_path / "whole").items():
        assert torch.equal(value, weights[name]), name
    assert record.metrics["mixing/target_samples"] == whole["target_samples"]
    wait_for_free_cpus()


def wait_for_free_cpus(timeout_s: float = 30) -> None:
    """Wait until nothing is reserved on the cluster."""
    deadline = time.monotonic() + timeout_s
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, ray.util.placement_group_table()
        time.sleep(0.2)


def processes(titles: tuple[str, ...]) -> set[int]:
    """The processes of Ray's actors, by the titles that Ray gives them."""
    found = set()
    for each in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            if " ".join(each.cmdline()).startswith(titles):
                found.add(each.pid)
    return found


def wait_for_step(experiment: Experiment, step: int, timeout_s: float = 120) -> int:
    """Wait until the run's reported metrics reach a step."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        time.sleep(0.2)
        try:
            records = experiment_runs(experiment.tracking.uri, experiment.name)
        except InputError:
            continue
        samples = [record.metrics.get("mixing/target_samples", 0) for record in records]
        if samples and samples[0] >= step * experiment.train.batch_size:
            return int(samples[0] // experiment.train.batch_size)
    pytest.fail(f"training did not reach step {step} in {timeout_s} s")
