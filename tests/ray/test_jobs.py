"""`ray job submit` for real: a head with token authentication, and jobs from the installed package and a checkout."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import vector_tree, write_vector_corpora
from tests.installed import ROOT, install
from tests.servers import free_port
from uml_core.config import parse_experiment
from uml_core.tracking.reading import experiment_runs

RAY = str(Path(sys.executable).with_name("ray"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Start a head of its own (ports, token, temporary folder) and stop its processes, by id, afterwards."""
    directory = tmp_path_factory.mktemp("head")
    dashboard = free_port()
    token = directory / "auth_token"
    token.write_text("0" * 64, encoding="utf-8")
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "UML_ROOT"))},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ADDRESS": f"http://127.0.0.1:{dashboard}",
    }
    log = directory / "head.log"
    started = {key: value for key, value in environment.items() if key != "RAY_ADDRESS"}
    head = subprocess.Popen(
        [RAY, "start", "--head", "--block", "--num-cpus=2", f"--port={free_port()}", f"--dashboard-port={dashboard}",
         f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}",
         f"--temp-dir=/tmp/uml-{os.getpid()}"],
        env=started, start_new_session=True, stdout=log.open("wb"), stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        wait_for_head(environment, head, dashboard, log)
        yield environment
    finally:
        os.killpg(head.pid, signal.SIGKILL)  # the head and all it started: a session of its own, nothing else
        head.wait()


def wait_for_head(environment: dict[str, str], head: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait until jobs may be submitted; the port comes first, for a listing of jobs takes two seconds of CPU."""
    for _ in range(300):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            listing = subprocess.run([RAY, "job", "list"], env=environment, capture_output=True, text=True, check=False)
            if listing.returncode == 0:
                return
        if head.poll() is not None:
            break
        time.sleep(0.2)
    pytest.fail(f"the head did not come up: {log.read_text()[-2000:]}")


def submit(
    environment: dict[str, str], directory: Path, env_vars: dict[str, str], *line: str
) -> subprocess.CompletedProcess[str]:
    runtime = json.dumps({"env_vars": env_vars})
    command = [RAY, "job", "submit", "--working-dir", str(directory), "--runtime-env-json", runtime, "--"]
    for _ in range(10):  # the head answers before the process that takes jobs has started
        job = subprocess.run(
            [*command, *line], env=environment, capture_output=True, text=True, check=False, timeout=300
        )
        if "No available agent to submit job" not in job.stderr + job.stdout:
            break
        time.sleep(1)
    return job


def test_steps_as_a_job_that_uploads_the_experiment_file_alone(cluster: dict[str, str], tmp_path: Path) -> None:
    theirs = tmp_path / "package"  # in the checkout of somebody else; on a cluster: in the environment of every node
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@y"]
    subprocess.run([*git, "init", "-q", str(theirs)], check=True)
    subprocess.run([*git, "-C", str(theirs), "commit", "-q", "--allow-empty", "-m", "theirs"], check=True)
    installed = install(theirs)
    write_vector_corpora(tmp_path)
    tracking = {"uri": "sqlite:///mlflow.db", "artifacts": "artifacts"}
    tree = vector_tree(tmp_path, store="store", tracking=tracking)
    file = tmp_path / "job" / "experiment.yaml"
    file.parent.mkdir()
    file.write_text(parse_experiment(tree).to_yaml(), encoding="utf-8")
    where = f"{sys.executable} -c 'import pipelines; print(pipelines.__file__)'"
    line = f"{where} && {installed}/bin/uml run experiment.yaml --steps embed,train"
    job = submit(cluster, file.parent, {"UML_ROOT": str(tmp_path), "PYTHONPATH": str(installed)}, "bash", "-c", line)
    assert job.returncode == 0, job.stdout[-3000:] + job.stderr[-3000:]
    assert str(installed / "pipelines" / "__init__.py") in job.stdout
    assert (tmp_path / "mlflow.db").exists()
    assert list((tmp_path / "store" / "target").glob("*/manifest.json"))
    assert "val " in job.stdout
    assert "test " in job.stdout
    runs = experiment_runs(f"sqlite:///{tmp_path}/mlflow.db", tree["name"])
    assert {run.tags["git.commit"] for run in runs if run.kind in ("uml", "unimodal")} == {"unknown"}

    refused = submit(cluster, ROOT, {}, sys.executable, "-m", "pipelines.train", str(file))
    assert refused.returncode != 0
    assert "which is a temporary copy; give an absolute place" in refused.stdout + refused.stderr


def test_a_shell_without_the_token_is_refused(cluster: dict[str, str], tmp_path: Path) -> None:
    wrong = tmp_path / "auth_token"
    wrong.write_text("1" * 64, encoding="utf-8")
    stranger = {**cluster, "RAY_AUTH_TOKEN_PATH": str(wrong)}
    listing = subprocess.run([RAY, "job", "list"], env=stranger, capture_output=True, text=True, check=False)
    assert listing.returncode != 0
