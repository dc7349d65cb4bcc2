"""On a cluster that gains a node and loses it: `embed`, and a run with train.min_workers, whose weights are equal."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
import torch
from mlflow.tracking import MlflowClient
from ray.cluster_utils import Cluster
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator

from pipelines.embed import step as embed
from pipelines.ray_session import ray_kept, ray_session
from pipelines.ray_train.checkpoints import newest_state
from pipelines.run_data import load_data
from pipelines.stores import corpus_store
from pipelines.train import on_workers
from pipelines.train import step as train
from tests.conftest import picture_tree, vector_tree, write_picture_corpora, write_vector_corpora
from tests.light_encoder import SlowColourGrid, light
from uml_core.config import Experiment, parse_experiment
from uml_core.encoders import Decoded, Embeddings
from uml_core.errors import InputError
from uml_core.tracking.reading import experiment_runs
from uml_core.training.run import TrainingRun

STEPS = 2000


@pytest.fixture
def cluster(no_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head with one CPU, joined as a user joins it."""
    nodes = tmp_path / "nodes"
    nodes.mkdir()
    monkeypatch.setenv("UML_TEST_NODES", str(nodes))
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "5")  # Train may still count on a node that is gone
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    quick = {"health_check_period_ms": 200, "health_check_failure_threshold": 2}  # else a dead node is missed for 15 s
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": quick}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_a_run_grows_by_a_new_node_and_goes_on_when_it_is_lost(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = functools.partial(on_workers.ScalingConfig, elastic_resize_monitor_interval_s=0)  # not every 60 s
    monkeypatch.setattr(on_workers, "ScalingConfig", often)
    pausing = tmp_path / "pausing"
    pausing.touch()
    monkeypatch.setattr(on_workers, "train_loop_per_worker", paused_loop(pausing))
    write_vector_corpora(tmp_path)
    train_settings = {"max_steps": STEPS, "eval_every": 10, "patience": STEPS, "batch_size": 7}
    train_settings |= {"report_every_s": 0.2, "report_share": 1}
    workers = {"workers": 3, "min_workers": 1}  # one more than the cluster ever has
    slowly = {"lr": 1e-4}  # so that rounding stays rounding over so many steps
    experiment = parse_experiment(vector_tree(tmp_path, train={**train_settings, **workers}, optim=slowly))

    with pytest.raises(InputError, match="unreachable"), ray_session(meanwhile=fails):
        pass
    assert not ray.is_initialized()
    with ray_kept(), ThreadPoolExecutor(1) as background:  # only this thread may change the cluster
        with ray_session():
            pass
        assert ray.is_initialized(), "the first step's Ray is there for the next"
        embed_on_a_node_that_comes_and_goes(cluster, tmp_path, background)
        embed.run(experiment)
        training = background.submit(train.run, experiment)
        wait_for(lambda: ray.available_resources().get("CPU", 0) == 0)  # it begins with the one CPU there is
        node = cluster.add_node(num_cpus=1)
        count_again()
        wait_for(lambda: reported_workers(experiment) == 2)
        cluster.remove_node(node, allow_graceful=False)
        wait_for(lambda: sum(each["Alive"] for each in ray.nodes()) == 1)
        count_again()
        wait_for(lambda: reported_workers(experiment) == 1)
        pausing.unlink()
        results = training.result().results
    assert not ray.is_initialized()

    client = MlflowClient(experiment.tracking.uri)
    numbers = client.get_metric_history(results["run_id"], "perf/workers")
    assert [(point.value, point.step > 0) for point in numbers] == [(1, False), (2, True), (1, True)]
    evaluated = [point.step for point in client.get_metric_history(results["run_id"], "val/nll")]
    assert sorted(evaluated) == evaluated

    whole = TrainingRun(experiment, load_data(experiment))
    for _ in whole.evaluations():
        pass
    state = newest_state(f"{experiment.store}/_runs/train-{experiment.config_hash}/1")
    assert state is not None
    assert state["progress"]["step"] == STEPS
    assert state["progress"]["samples"] == dict(whole.progress.samples)
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(state["model"][name], value, rtol=1e-4, atol=1e-4, msg=name)


class OnTwoNodes(SlowColourGrid):
    """Notes the nodes that it encodes on, and waits for a second one."""

    def encode(self, rows: Sequence[Decoded]) -> Embeddings:
        """Encode B pictures into (B, D)."""
        nodes = Path(os.environ["UML_TEST_NODES"])
        (nodes / ray.get_runtime_context().get_node_id()).touch()
        wait_for(lambda: len(list(nodes.iterdir())) == 2)
        return super().encode(rows)


def embed_on_a_node_that_comes_and_goes(cluster: Cluster, tmp_path: Path, background: ThreadPoolExecutor) -> None:
    """`embed` grows onto it; it is lost with a part in hand, and each row is embedded once all the same."""
    write_picture_corpora(tmp_path, counts={"train": 6, "val": 1, "test": 1})
    tree = {**picture_tree(tmp_path), "embed": {"part_rows": 3}}
    del tree["corpora"]["names"]
    experiment = parse_experiment(light(tree, OnTwoNodes))
    embedding = background.submit(embed.run, experiment)
    nodes = Path(os.environ["UML_TEST_NODES"])
    wait_for(lambda: len(list(nodes.iterdir())) == 1)
    node = cluster.add_node(num_cpus=1)
    count_again()
    wait_for(lambda: len(list(nodes.iterdir())) == 2, timeout_s=30)
    cluster.remove_node(node, allow_graceful=False)
    assert embedding.result().results["corpora"]["pictures"]["rows"] == 24
    folder = Path(corpus_store(experiment, "pictures").directory)
    ids = [row for part in folder.glob("part-*") for row in pq.read_table(part)["id"].to_pylist()]
    files = (tmp_path / "pictures").rglob("*.png")
    assert sorted(ids) == sorted(file.relative_to(tmp_path / "pictures").as_posix() for file in files)
    wait_for(lambda: sum(each["Alive"] for each in ray.nodes()) == 1)


def fails() -> None:
    raise InputError("the tracking server is unreachable")


def paused_loop(pausing: Path) -> Callable[[dict[str, Any]], None]:
    """The training loop with a pause at every evaluation while a file is there: nodes come and go in seconds."""

    def paused(config: dict[str, Any]) -> None:
        from pipelines.train import loop, worker

        points = loop.evaluation_points

        def points_after_pause(*evaluated: Any) -> Any:
            if pausing.exists():
                time.sleep(0.25)
            return points(*evaluated)

        loop.evaluation_points = points_after_pause
        worker.train_loop_per_worker(config)

    return paused


def reported_workers(experiment: Experiment) -> float:
    """How many workers the run has reported last, 0 before it reports."""
    return max(
        record.metrics.get("perf/workers", 0) for record in experiment_runs(experiment.tracking.uri, experiment.name)
    )


def count_again() -> None:
    """Let Ray look at once at what it may reserve for Train; it does every 20 s."""
    ray.get(get_or_create_autoscaling_coordinator().get_reserved_resources.remote("", recompute=True))


def wait_for(happened: Callable[[], bool], timeout_s: float = 120) -> None:
    """Wait until something has happened."""
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline, f"it did not happen in {timeout_s} s"
        time.sleep(0.1)
