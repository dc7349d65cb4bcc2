"""GPUs that a cluster has none of until they are asked for: Ray's own autoscaler, whose nodes are processes here."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

from cluster.rehearsal import RAY, free_port
from tests.installed import ROOT

GPU_NODE = {"CPU": 4, "GPU": 1, "spot": 1000, "accelerator_type:T4": 1}


@pytest.fixture(scope="module")
def autoscaled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment to join a head of one CPU, and nodes of one GPU each, none at first; ended by process ids."""
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
        "cluster_synced_files": [],
        **{key: [] for key in ("initialization_commands", "setup_commands", "head_setup_commands")},
        **{key: [] for key in ("worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")},
    }
    file = directory / "cluster.yaml"
    file.write_text(json.dumps(config), encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    settings = {**kept, "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_AUTH_MODE": "disabled"}
    places = [f"--port={port}", f"--dashboard-agent-listen-port={free_port()}", f"--temp-dir={temporary}"]
    line = [RAY, "start", "--head", "--block", "--num-cpus=1", "--include-dashboard=false", *places]
    with (directory / "head.log").open("wb") as log:
        head = subprocess.Popen(
            [*line, f"--autoscaling-config={file}"],
            env=settings,
            start_new_session=True,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for(head, directory / "head.log")
        yield {**kept, "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": address, "PYTHONPATH": str(ROOT)}
    finally:
        started = [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]
        for process in started:
            with contextlib.suppress(psutil.NoSuchProcess):  # one ends with the one before it
                process.kill()
        head.wait()
        shutil.rmtree(temporary, ignore_errors=True)


def wait_for(head: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(300):
        if "Ray runtime started" in log.read_text(errors="replace"):
            return
        if head.poll() is not None:
            break
        time.sleep(0.2)
    pytest.fail(f"the head did not come up: {log.read_text()[-2000:]}")


ASKING = """
import json, ray
from pipelines.embed.workers import Workers
from pipelines.ray_session import await_resources, gpu_types
from pipelines.tune.proposals import trial_resources
from pipelines.train.on_workers import _check_workers
from uml_core.config import ClusterConfig, EmbedConfig, TuneConfig
from uml_core.errors import InputError
from ray.util.placement_group import placement_group

def of(use_gpu, **cluster):
    try:
        found = Workers.from_settings(EmbedConfig(use_gpu=use_gpu), num_parts=4, cluster=ClusterConfig(**cluster))
    except InputError as error:
        return str(error)
    return [found.actors, found.device, found.nodes]

ray.init(logging_level="ERROR", log_to_driver=False)
said = [await_resources("GPU", 1, wait_s=0), of(True), of("auto"), of(True, wait_s=60, embed_on="spot"), of(False)]
said += [gpu_types("spot"), gpu_types("on_demand")]
needs, at_once = trial_resources(TuneConfig(gpus_per_trial=0.25), cpus=5, gpus=1)
trials = [placement_group([{name.upper(): value for name, value in needs.items()}]) for _ in range(at_once + 1)]
said.append(sum(trial.wait(timeout_seconds=5 if trial is not trials[-1] else 0.3) for trial in trials))
there = await_resources("GPU", 9, wait_s=2)  # more than it may grow to
try:
    _check_workers(9, there, use_gpu=True, setting="workers")
except InputError as error:
    said.append(str(error))
print(json.dumps(said))
"""  # in a process of its own: Ray ends a process whose head is not to its liking


def test_gpus_are_asked_for_and_come(autoscaled: dict[str, str]) -> None:
    line = [sys.executable, "-c", ASKING]
    asked = subprocess.run(line, env=autoscaled, capture_output=True, text=True, check=False, timeout=150)
    assert asked.returncode == 0, asked.stderr[-3000:]
    none, refused, auto, given, on_cpu, types, no_types, trials, too_many = json.loads(asked.stdout.splitlines()[-1])
    assert none == 0
    assert refused.startswith("embed.use_gpu is true, but the cluster has no GPU; set cluster.wait_s")
    assert auto[1] == on_cpu[1] == "cpu"
    assert given == [1, "cuda", "spot"]
    assert (types, no_types) == ({"T4": 1}, {})
    assert trials == 4, "on one GPU, a quarter each"
    assert re.match(r"train.workers is 9, but the cluster has [12] GPUs.* cluster.wait_s", too_many)
