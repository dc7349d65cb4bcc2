"""Training under Ray Train: the MLflow contract, 2 workers against 1, and resuming after kill -9."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from pipelines import embed, export, train
from pipelines.train_loop import load_state
from tests.conftest import vector_tree, write_vector_corpora
from uml_core.config import Experiment, parse_experiment
from uml_core.errors import InputError
from uml_core.tracking import download, experiment_runs, find_run, load_predictor

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    directory = tmp_path_factory.mktemp("train")
    write_vector_corpora(directory)
    experiment = parse_experiment(vector_tree(directory))
    embed.run(experiment)
    return experiment


def weights_of(experiment: Experiment, run_id: str, directory: Path) -> dict[str, torch.Tensor]:
    return load_file(download(experiment.tracking.uri, f"runs:/{run_id}/weights/model.safetensors", directory))


@pytest.mark.usefixtures("ray_cluster")
class TestOnOneCluster:
    """Tests that share a running Ray."""

    def test_a_run_and_its_twin_follow_the_contract(
        self, experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        results = train.run(experiment.override({"train.twin": True})).results
        bars = capsys.readouterr().err
        assert re.search(
            r"train uml: 100%.*40/40 steps, .* steps/s, 0:00:00 left, loss target .*, names .*, val ", bars
        )
        assert "train unimodal: 100%" in bars
        record = find_run(experiment.tracking, results["run_id"])
        assert record.status == "FINISHED"
        assert (record.kind, record.params["seed"], record.params["data.shots"]) == ("uml", "0", "None")
        assert record.params["mixing.schedule"] == "joint"
        for name in (
            *("train/loss/target", "train/loss/names", "val/accuracy", "test/accuracy"),
            *("perf/samples_per_s", "perf/data_wait_s", "mixing/observed_ratio/names"),
        ):
            assert name in record.metrics, name
        for tag in ("uml.config_hash", "uml.store_fingerprint", "uml.corpora", "git.commit"):
            assert record.tags[tag], tag
        twin = find_run(experiment.tracking, results["twin"]["run_id"])
        assert twin.kind == "unimodal"
        assert twin.metrics["mixing/target_samples"] == record.metrics["mixing/target_samples"]
        assert twin.metrics["model/trained_parameters"] == record.metrics["model/trained_parameters"]
        difference = 100 * (record.metrics["test/accuracy"] - twin.metrics["test/accuracy"])
        assert results["test_difference_points"] == pytest.approx(difference, abs=0.01)
        logged = download(experiment.tracking.uri, f"runs:/{record.run_id}/experiment.yaml", tmp_path)
        assert parse_experiment(yaml.safe_load(logged.read_text())).name == experiment.name

    def test_the_logged_model_gives_trainings_logits(self, experiment: Experiment, tmp_path: Path) -> None:
        train.run(experiment)
        before = len(experiment_runs(experiment.tracking.uri, experiment.name))
        results = train.run(experiment).results
        runs = experiment_runs(experiment.tracking.uri, experiment.name)
        assert len(runs) == before + 1, "a finished run again is a new run"
        predictor = load_predictor(experiment.tracking.uri, results["model_uri"], tmp_path / "model")
        weights = weights_of(experiment, results["run_id"], tmp_path)
        embeddings = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)
        projected = torch.from_numpy(embeddings) @ weights["projections.target.weight"].T
        expected = weights["scales.target"] * projected @ weights["head.weight"].T
        assert np.allclose(predictor.classify(embeddings).logits, expected.numpy(), atol=1e-5)
        uri = experiment.tracking.uri
        export.run(results["model_uri"], str(tmp_path / "head"), uri, formats=("safetensors",))
        exported = load_file(tmp_path / "head" / "head.safetensors")["head.weight"]
        assert np.allclose(embeddings @ exported.numpy().T, expected.numpy(), atol=1e-5)

    def test_two_workers_equal_one_on_the_joined_batch(self, experiment: Experiment, tmp_path: Path) -> None:
        changes = {"train.batch_size": 7, "mixing.batch_ratio.names": 0.4, "train.max_steps": 30, "seed": 5}
        changes |= {"train.gradient_cosine": True}
        one = train.run(experiment.override(changes)).results
        two = train.run(experiment.override({**changes, "train.workers": 2})).results
        first = weights_of(experiment, one["run_id"], tmp_path / "one")
        second = weights_of(experiment, two["run_id"], tmp_path / "two")
        assert two["observed_ratio"] == one["observed_ratio"] == {"names": pytest.approx(84 / 210)}
        for name, value in first.items():
            assert torch.allclose(value, second[name], atol=1e-5), name
        cosines = [
            find_run(experiment.tracking, run["run_id"]).metrics["analysis/gradient_cosine/names"] for run in (one, two)
        ]
        assert cosines[0] == pytest.approx(cosines[1], abs=1e-4)
        assert 0 < abs(cosines[0]) <= 1

    def test_divergence_is_told_and_the_run_failed(self, experiment: Experiment) -> None:
        with pytest.raises(InputError, match=r"is not finite at step \d+; lower optim.lr.* rows of that batch"):
            train.run(experiment.override({"optim.lr": 1e30, "optim.warmup_steps": 0, "model.scale_init": 1e30}))
        assert experiment_runs(experiment.tracking.uri, experiment.name)[0].status == "FAILED"

    def test_divergence_leaves_the_last_good_checkpoint(
        self, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The rate grows until the weights overflow, many reports after the start."""
        changes = {"optim.lr": 1e38, "optim.warmup_lr": 1e-5, "optim.warmup_steps": 10**36, "train.max_steps": 400}
        changes |= {"train.eval_every": 1, "train.report_every_s": 0.01, "train.patience": 1000, "train.workers": 2}
        with pytest.raises(InputError, match=r"is not finite at step \d+; .* step \d+ is kept in /") as told:
            train.run(experiment.override(changes))
        at, good, path = re.search(r"at step (\d+);.*; step (\d+) is kept in (\S+)$", str(told.value)).groups()
        state = load_state(Path(path))
        assert state["progress"]["step"] == int(good) <= int(at)
        assert all(value.isfinite().all() for value in state["model"].values())


def test_kill_9_and_the_same_line_again_end_as_an_uninterrupted_run(experiment: Experiment, tmp_path: Path) -> None:
    """Kill the driver in the middle of training; the same line goes on in the same MLflow run."""
    # A window of many small batches, so that the kill falls inside the run, with a checkpoint every 0.2 s.
    changes = {"train.max_steps": 6000, "train.eval_every": 50, "train.patience": 1000, "train.report_every_s": 0.2}
    settings = experiment.override({**changes, "name": "killed", "store": experiment.store})
    file = tmp_path / "experiment.yaml"
    file.write_text(settings.to_yaml(), encoding="utf-8")
    line = [sys.executable, "-m", "pipelines.train", str(file)]
    driver = subprocess.Popen(line, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        step = wait_for_step(settings, 500)
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    assert 500 <= step < 6000
    again = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    records = experiment_runs(settings.tracking.uri, "killed")
    assert [(record.status, record.metrics["perf/steps"]) for record in records] == [("FINISHED", 6000)]
    whole = subprocess.run([*line, "name=whole"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert whole.returncode == 0, whole.stderr
    uninterrupted = experiment_runs(settings.tracking.uri, "whole")[0]
    first = weights_of(settings, records[0].run_id, tmp_path / "killed")
    second = weights_of(settings, uninterrupted.run_id, tmp_path / "whole")
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert records[0].metrics["mixing/target_samples"] == uninterrupted.metrics["mixing/target_samples"]


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
