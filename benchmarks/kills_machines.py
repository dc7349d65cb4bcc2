"""The machines that `benchmarks.kills` hits: a Ray of several raylets on this machine, and an MLflow server."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from cluster.rehearsal import free_port
from tests.servers import MLflowServer

ROOT = Path(__file__).resolve().parents[1]
RAY = str(Path(sys.executable).with_name("ray"))
MARK = "UML_KILLS"  # in the environment of all that runs here, by which orphans are found
START_S, SETTLE_S = 120.0, 40.0  # until a machine is up; until what a step started must have ended
WORKERS = {  # the titles of what works for a step
    "embed": "EncodePart",
    "train": "ray::RayTrainWorker",
    "tune": "ray::ImplicitFunc",
    "predict": "ClassifyPart",
}
CONTROLLER = "ray::TrainController"
QUICK = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}  # else a dead node is missed for 15 s


class Machines:
    """The cluster and the MLflow server; every process is a session of its own, and is ended by its id."""

    def __init__(self, directory: Path, *, is_quick: bool = True) -> None:
        self.directory, self._config = directory, QUICK if is_quick else {}
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "UML_"))}
        self.environment |= {
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(directory / "tmp"),
            "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "disabled",
            "RAY_gcs_rpc_server_reconnect_timeout_s": "5",  # how long what is left looks for a head that is gone
            MARK: str(directory),
        }
        (directory / "tmp").mkdir()
        os.environ[MARK] = str(directory)  # of the MLflow server
        self.mlflow = MLflowServer(directory)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Machines:
        try:
            self.mlflow.start()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self.processes):
            self.kill(name)
        self.mlflow.stop()
        for process in marked():
            process.kill()

    def start(self) -> None:
        """Bring up what is not there, or has ended: the head, and the two workers."""
        for name in [name for name, process in self.processes.items() if process.poll() is not None]:
            self.kill(name)
        if "head" not in self.processes:
            self.port = free_port()
            line = ["--head", "--num-cpus=0", "--include-dashboard=false", f"--port={self.port}"]
            line += [f"--system-config={json.dumps(self._config)}", f"--ray-client-server-port={free_port()}"]
            self._spawn("head", line)
            self.environment["RAY_ADDRESS"] = f"127.0.0.1:{self.port}"
        for name in ("worker-1", "worker-2"):
            if name not in self.processes:
                self._spawn(name, ["--num-cpus=1", f"--address=127.0.0.1:{self.port}"])

    def kill(self, name: str) -> None:
        """End a machine and all its processes at once."""
        process = self.processes.pop(name)
        with contextlib.suppress(psutil.NoSuchProcess):
            for each in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()
        process.wait()

    def raylet(self, name: str) -> psutil.Process:
        """A node's raylet."""
        tree = psutil.Process(self.processes[name].pid).children(recursive=True)
        return next(process for process in tree if Path(cmdline(process).split(" ")[0]).name == "raylet")

    def orphans(self) -> list[str]:
        """Processes of steps that have ended, and those whose machine has; none, once what is ending has ended."""
        ends = time.monotonic() + SETTLE_S
        while True:
            alive = [psutil.Process(process.pid) for process in self.processes.values() if process.poll() is None]
            kept = {process.pid for root in alive for process in (root, *root.children(recursive=True))}
            titles, found = ("pipelines.", *WORKERS.values(), CONTROLLER), [(each, cmdline(each)) for each in marked()]
            others = [(each.pid, line) for each, line in found if line and "mlflow" not in line]
            left = [line[:80] for pid, line in others if pid not in kept or any(title in line for title in titles)]
            if not left or time.monotonic() > ends:
                return left
            time.sleep(0.5)

    def silence(self, process: psutil.Process, seconds: float) -> None:
        """Stop the node of a process, all that its raylet has started, and let it go on after so many seconds."""
        name = next(name for name in self.processes if name != "head" and self.raylet(name).pid == process.ppid())
        node = [self.raylet(name), *self.raylet(name).children(recursive=True)]
        for each in node:
            each.suspend()
        time.sleep(seconds)
        for each in node:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.resume()

    def _spawn(self, name: str, line: list[str]) -> None:
        own = [f"--dashboard-agent-listen-port={free_port()}", f"--temp-dir={self.directory}/{name[0]}{name[-1]}"]
        log = (self.directory / f"{name}.log").open("ab")
        process = subprocess.Popen(
            [RAY, "start", "--block", *line, *own], env=without(self.environment, "RAY_ADDRESS"), cwd=ROOT,
            start_new_session=True, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.processes[name] = process
        ends = time.monotonic() + START_S
        while "Ray runtime started" not in (self.directory / f"{name}.log").read_text(errors="replace")[-3000:]:
            if process.poll() is not None or time.monotonic() > ends:
                raise RuntimeError(f"{name} did not come up: {log.name}")
            time.sleep(0.2)
        log.truncate(0)


def without(settings: dict[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in settings.items() if key != name}


def cmdline(process: psutil.Process) -> str:
    """A process's command line, "" where it has ended."""
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def marked() -> list[psutil.Process]:
    """All processes that were started here, orphans too, but this one."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(MARK) == os.environ[MARK]:
                found.append(process)
    return found


def usage(machines: Machines) -> dict[str, float]:
    """What is held between rounds: by the processes that stay, and on disk beside the rounds' own folders."""
    held = {"processes": 0.0, "MiB of memory": 0.0, "open files": 0.0}
    for process in marked():
        with contextlib.suppress(psutil.Error):
            held["MiB of memory"] += process.memory_info().rss / 2**20
            held["open files"] += process.num_fds()
            held["processes"] += 1
    for file in (file for file in machines.directory.rglob("*") if file.is_file()):
        top = file.relative_to(machines.directory).parts[0]
        kinds = {"tmp": "temporary", "served": "MLflow's", "server.db": "MLflow's"} | dict.fromkeys(
            ("hd", "w1", "w2"), "Ray's"
        )
        kind = kinds.get(top, "other")
        held[f"{kind} files"] = held.get(f"{kind} files", 0.0) + 1
        with contextlib.suppress(OSError):
            held[f"MiB of {kind} files"] = held.get(f"MiB of {kind} files", 0.0) + file.lstat().st_size / 2**20
    return {name: round(value, 1) for name, value in held.items()}
