"""GPUs that a cluster has none of until they are asked for: Ray's own autoscaler, whose nodes are processes here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

from pipelines.embed.stages import Workers
from pipelines.ray_session import await_resources
from pipelines.train.on_workers import _check_workers
from tests.ray.test_jobs import RAY, free_port
from uml_core.config import ClusterConfig, EmbedConfig
from uml_core.errors import InputError

NOW = ClusterConfig()  # waits for nothing
GPU_NODE = {"CPU": 1, "GPU": 1, "spot": 1000}


@pytest.fixture(scope="module")
def autoscaled(no_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A head of one CPU, and nodes of one GPU each, none of them at first; ended by the ids of its processes."""
    directory, port = tmp_path_factory.mktemp("autoscaled"), free_port()
    temporary = Path(f"/tmp/uml-{os.getpid()}-d")  # short: sockets lie in it
    address = f"{ray.util.get_node_ip_address()}:{port}"
    config = {
        "cluster_name": "demand",
        "max_workers": 2,
        "idle_timeout_minutes": 1,
        "upscaling_speed": 1.0,
        "provider": {"type": "fake_multinode", "gcs_address": address},
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            "gpu": {"resources": GPU_NODE, "node_config": {}, "min_workers": 0, "max_workers": 2},
        },
        "head_node_type": "ray.head.default",
        **{key: {} for key in ("auth", "docker", "file_mounts")},
        **{key: [] for key in ("initialization_commands", "setup_commands", "head_setup_commands")},
        **{key: [] for key in ("worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")},
    }
    file = directory / "cluster.yaml"
    file.write_text(json.dumps(config), encoding="utf-8")
    settings = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_AUTH_MODE": "disabled"}
    places = [f"--port={port}", f"--dashboard-agent-listen-port={free_port()}", f"--temp-dir={temporary}"]
    line = [RAY, "start", "--head", "--block", "--num-cpus=1", "--include-dashboard=false", *places]
    with (directory / "head.log").open("wb") as log:
        head = subprocess.Popen(
            [*line, f"--autoscaling-config={file}"],
            env={**os.environ, **settings},
            start_new_session=True,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        connect(address, head, directory / "head.log")
        yield
    finally:
        ray.shutdown()
        started = [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]
        for process in started:
            process.kill()
        head.wait()
        shutil.rmtree(temporary, ignore_errors=True)


def connect(address: str, head: subprocess.Popen[bytes], log: Path) -> None:
    """Connect once the head says that it runs: Ray ends a process that cannot reach its head."""
    for _ in range(300):
        if "Ray runtime started" in log.read_text(errors="replace"):
            ray.init(address=address, logging_level="ERROR", log_to_driver=False)
            return
        if head.poll() is not None:
            break
        time.sleep(0.2)
    pytest.fail(f"the head did not come up: {log.read_text()[-2000:]}")


@pytest.mark.usefixtures("autoscaled")
def test_gpus_are_asked_for_and_come() -> None:
    assert await_resources("GPU", 1, wait_s=0) == 0
    with pytest.raises(InputError, match=r"^embed.use_gpu is true, but the cluster has no GPU; set cluster.wait_s"):
        Workers.from_settings(EmbedConfig(use_gpu=True), num_parts=4, cluster=NOW)
    assert Workers.from_settings(EmbedConfig(), num_parts=4, cluster=NOW).device == "cpu"
    workers = Workers.from_settings(
        EmbedConfig(use_gpu=True), num_parts=4, cluster=ClusterConfig(wait_s=120, embed_on="spot")
    )
    assert (workers.actors, workers.device, workers.nodes) == (1, "cuda", "spot")
    assert Workers.from_settings(EmbedConfig(use_gpu=False), num_parts=4, cluster=NOW).device == "cpu"
    there = await_resources("GPU", 9, wait_s=2)  # more than it may grow to
    with pytest.raises(InputError, match=rf"^train.workers is 9, but the cluster has {there} GPUs.* cluster.wait_s"):
        _check_workers(9, there, use_gpu=True, setting="workers")
