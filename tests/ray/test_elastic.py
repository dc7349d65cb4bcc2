"""A run with train.min_workers on a cluster that loses a node: it goes on with fewer workers, to the same weights."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
from mlflow.tracking import MlflowClient
from ray.cluster_utils import Cluster
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator

from pipelines import embed, train
from pipelines.checkpoints import newest_state
from pipelines.runtime import ray_session
from pipelines.stored import read_training_data
from tests.conftest import vector_tree, write_vector_corpora
from tests.ray.test_train import wait_for_step
from uml_core.config import parse_experiment
from uml_core.training import TrainingRun

STEPS = 4000  # a few seconds more than a dead node takes to be missed


@pytest.fixture
def cluster(no_ray: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head with one CPU, joined as a user joins it."""
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "5")  # Train may still count on a node that is gone
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    quick = {"health_check_period_ms": 200, "health_check_failure_threshold": 2}  # else a dead node is missed for 15 s
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": quick}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_a_lost_node_leaves_fewer_workers_and_the_same_weights(cluster: Cluster, tmp_path: Path) -> None:
    node = cluster.add_node(num_cpus=1)
    write_vector_corpora(tmp_path)
    train_settings = {"max_steps": STEPS, "eval_every": 20, "patience": STEPS, "batch_size": 7}
    train_settings |= {"report_every_s": 0.2, "report_share": 1}
    workers = {"workers": 3, "min_workers": 1}  # one more than the cluster ever has
    slowly = {"lr": 1e-4}  # so that rounding stays rounding over so many steps
    experiment = parse_experiment(vector_tree(tmp_path, train={**train_settings, **workers}, optim=slowly))
    lost = []

    def lose() -> None:
        lost.append(wait_for_step(experiment, 200))
        cluster.remove_node(node, allow_graceful=False)
        while sum(each["Alive"] for each in ray.nodes()) > 1:
            time.sleep(0.1)
        # What Train reserves is looked over every 20 s; not in a test.
        ray.get(get_or_create_autoscaling_coordinator().get_reserved_resources.remote("", recompute=True))

    with ray_session():
        embed.run(experiment)
        losing = threading.Thread(target=lose)
        losing.start()
        results = train.run(experiment).results
        losing.join()
    assert 200 <= lost[0] < STEPS
    client = MlflowClient(experiment.tracking.uri)
    history = client.get_metric_history(results["run_id"], "perf/workers")
    assert [(point.value, point.step > 0) for point in history] == [(2, False), (1, True)]

    whole = TrainingRun(experiment, read_training_data(experiment).data)
    for _ in whole.evaluations():
        pass
    state = newest_state(f"{experiment.store}/_runs/train-{experiment.config_hash}/1")
    assert state is not None
    assert state["progress"]["step"] == STEPS
    assert state["progress"]["samples"] == dict(whole.progress.samples)
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(state["model"][name], value, rtol=1e-4, atol=1e-4, msg=name)
